"""The instructions that LLM2Vec was evaluated with on MTEB (arXiv 2404.05961, appendix C), by task.

The strings are those of the reference implementation's evaluation (its own list and, for what that list leaves out, the
list of mteb 1.14), without the ":" at the end: an encoder's separator adds it. Queries and symmetric texts get them;
documents of retrieval and reranking get none.
"""

_STS = "Retrieve semantically similar text"
_TWEETS = "Retrieve tweets that are semantically similar to the given tweet"
_CQADUPSTACK = (
    "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given "
    "question"
)
_FORUMS = (
    *("Android", "English", "Gaming", "Gis", "Mathematica", "Physics"),
    *("Programmers", "Stats", "Tex", "Unix", "Webmasters", "Wordpress"),
)

_SEARCH = {
    # retrieval
    "ArguAna": "Given a claim, find documents that refute the claim",
    "ClimateFEVER": "Given a claim about climate change, retrieve documents that support or refute the claim",
    "DBPedia": "Given a query, retrieve relevant entity descriptions from DBPedia",
    "FEVER": "Given a claim, retrieve documents that support or refute the claim",
    "FiQA2018": "Given a financial question, retrieve user replies that best answer the question",
    "HotpotQA": "Given a multi-hop question, retrieve documents that can help answer the question",
    "MSMARCO": "Given a web search query, retrieve relevant passages that answer the query",
    "NFCorpus": "Given a question, retrieve relevant documents that best answer the question",
    "NQ": "Given a question, retrieve Wikipedia passages that answer the question",
    "QuoraRetrieval": ("Given a question, retrieve questions that are semantically equivalent to the given question"),
    "SCIDOCS": "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper",
    "SciFact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
    "Touche2020": "Given a question, retrieve detailed and persuasive arguments that answer the question",
    **{f"CQADupstack{forum}Retrieval": _CQADUPSTACK for forum in _FORUMS},
    # reranking
    "AskUbuntuDupQuestions": "Retrieve duplicate questions from AskUbuntu forum",
    "MindSmallReranking": "Retrieve relevant news articles based on user browsing history",
    "SciDocsRR": "Given a title of a scientific paper, retrieve the titles of other relevant papers",
    "StackOverflowDupQuestions": "Retrieve duplicate questions from StackOverflow forum",
}
_SYMMETRIC = {
    # clustering
    "ArxivClusteringP2P": (
        "Identify the main and secondary category of Arxiv papers based on the titles and abstracts"
    ),
    "ArxivClusteringS2S": "Identify the main and secondary category of Arxiv papers based on the titles",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles",
    "RedditClustering": "Identify the topic or theme of Reddit posts based on the titles",
    "RedditClusteringP2P": "Identify the topic or theme of Reddit posts based on the titles and posts",
    "StackExchangeClustering": "Identify the topic or theme of StackExchange posts based on the titles",
    "StackExchangeClusteringP2P": "Identify the topic or theme of StackExchange posts based on the given paragraphs",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles",
    # pair classification
    "SprintDuplicateQuestions": "Retrieve duplicate questions from Sprint forum",
    "TwitterSemEval2015": _TWEETS,
    "TwitterURLCorpus": _TWEETS,
    # classification
    "AmazonCounterfactualClassification": (
        "Classify a given Amazon customer review text as either counterfactual or not-counterfactual"
    ),
    "AmazonPolarityClassification": "Classify Amazon reviews into positive or negative sentiment",
    "AmazonReviewsClassification": "Classify the given Amazon review into its appropriate rating category",
    "Banking77Classification": "Given a online banking query, find the corresponding intents",
    "EmotionClassification": (
        "Classify the emotion expressed in the given Twitter message into one of the six emotions: anger, fear, joy, "
        "love, sadness, and surprise"
    ),
    "ImdbClassification": ("Classify the sentiment expressed in the given movie review text from the IMDB dataset"),
    "MTOPDomainClassification": "Classify the intent domain of the given utterance in task-oriented conversation",
    "MTOPIntentClassification": "Classify the intent of the given utterance in task-oriented conversation",
    "MassiveIntentClassification": "Given a user utterance as query, find the user intents",
    "MassiveScenarioClassification": "Given a user utterance as query, find the user scenarios",
    "ToxicConversationsClassification": "Classify the given comments as either toxic or not toxic",
    "TweetSentimentExtractionClassification": (
        "Classify the sentiment of a given tweet as either positive, negative, or neutral"
    ),
    # similarity and summaries
    **dict.fromkeys(
        ("BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22", "STSBenchmark"), _STS
    ),
    "SummEval": "Given a news summary, retrieve other semantically similar summaries",
}

INSTRUCTIONS: dict[str, str] = _SEARCH | _SYMMETRIC
"""By the names that the paper's tasks have in mteb."""


_OTHER_NAMES = {
    "ArXivHierarchicalClusteringP2P": "ArxivClusteringP2P",
    "ArXivHierarchicalClusteringS2S": "ArxivClusteringS2S",
    "SummEvalSummarization": "SummEval",
    "Touche2020Retrieval": "Touche2020",
}
"""Today's names of the paper's tasks, without their versions."""
_NEWER_SEARCH = (
    *("ClimateFEVERHardNegatives", "FEVERHardNegatives", "HotpotQAHardNegatives"),
    "Touche2020Retrieval.v3",
)
_NEWER_SYMMETRIC = (
    *("ArXivHierarchicalClusteringP2P", "ArXivHierarchicalClusteringS2S", "BiorxivClusteringP2P.v2"),
    *("MedrxivClusteringP2P.v2", "MedrxivClusteringS2S.v2", "StackExchangeClustering.v2"),
    *("StackExchangeClusteringP2P.v2", "TwentyNewsgroupsClustering.v2", "SummEvalSummarization.v2", "STS22.v2"),
)
"""Tasks of MTEB(eng, v2) that the paper has under another name."""


def paper_instruction(task: str) -> str | None:
    """The paper's instruction for a task of mteb or for a newer version of it (``.v2``, ``HardNegatives``)."""
    name = task.partition(".v")[0].removesuffix("HardNegatives")
    return INSTRUCTIONS.get(_OTHER_NAMES.get(name, name))


def mteb_prompts() -> dict[str, str]:
    """The instructions of MTEB(eng, v1) and (eng, v2) by the names under which mteb looks for a prompt.

    ``<task>-query`` where documents get none, else ``<task>``; ``query`` and ``document`` stand for other tasks.
    """
    search = [*_SEARCH, *_NEWER_SEARCH]
    symmetric = [*_SYMMETRIC, *_NEWER_SYMMETRIC]
    found = {f"{task}-query": paper_instruction(task) for task in search}
    found |= {task: paper_instruction(task) for task in symmetric}
    return {"query": "", "document": ""} | {name: text for name, text in found.items() if text}


def without_end(instruction: str) -> str:
    """An instruction as an encoder takes it: its separator comes instead of a full stop or colon at the end."""
    return instruction.strip().rstrip(".:")
