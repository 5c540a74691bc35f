"""A loss a file. None of them knows Lightning or Hydra: tensors in, numbers out."""

from l2v.losses.base import Loss
from l2v.losses.contrastive import Contrastive
from l2v.losses.distillation import Distillation
from l2v.losses.info_nce import info_nce
from l2v.losses.masked_tokens import masked_token_loss
from l2v.losses.triplets import Triplets

__all__ = ["Contrastive", "Distillation", "Loss", "Triplets", "info_nce", "masked_token_loss"]
