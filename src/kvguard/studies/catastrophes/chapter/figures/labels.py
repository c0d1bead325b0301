"""What axes and models are called."""

LABELS = {
    "auroc": "AUROC, pre-onset",
    "auprc": "AUPRC, pre-onset",
    "recall_at_5pct_fpr": "recall at 5 % FPR",
    "reduction": "reduction of CBR (share of traces)",
    "false_positive_rate": "false positives (share of traces)",
    "kv_saved": "KV memory saved",
    "kv_saved_controlled": "KV memory saved",
}


def model_title(model: str, is_reference: bool) -> str:
    """Return how figures and tables name a model."""
    return f"{model} (reference model)" if is_reference else model


def labelled(*metrics: str) -> dict[str, str]:
    """Return some metrics with what their axes are called."""
    return {name: LABELS[name] for name in metrics}
