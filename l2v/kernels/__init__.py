"""What makes a CPU fast, and lean. What of it concerns the whole process waits for :func:`enable`."""


def enable() -> None:
    """Have transformers' ``sdpa`` attention take dropout without keeping pairs, and glibc keep freed memory.

    The programs call it. Without it training is as correct; on a CPU it is slower, and attention with dropout draws
    other random numbers. On other devices nothing changes.
    """
    from l2v.kernels.attention import register_attention
    from l2v.kernels.memory import keep_freed_memory

    register_attention()
    keep_freed_memory()
