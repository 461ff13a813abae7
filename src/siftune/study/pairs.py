"""The rules for combining searchers and schedulers."""

from collections.abc import Collection


def refusal(searcher: str, scheduler: str) -> str | None:
    """Returns the reason why the pair cannot work and suggests a pair that can; otherwise None."""
    if searcher == "bohb" and scheduler != "bohb":
        return (
            f"--searcher bohb cannot work with --scheduler {scheduler}: its model compares configs "
            "at the epochs where the scheduler bohb stops them. Use "
            "--searcher bohb --scheduler bohb"
        )
    if scheduler == "bohb" and searcher != "bohb":
        return (
            f"--scheduler bohb cannot work with --searcher {searcher}: this scheduler is "
            f"HyperBand as used with BOHB's own model. Use --searcher {searcher} "
            "--scheduler hyperband, or --searcher bohb"
        )
    if scheduler == "pbt" and searcher != "random":
        return (
            f"--scheduler pbt cannot work with --searcher {searcher}: PBT changes the configs of "
            "running trials, so their scores say nothing about the configs that were proposed. "
            "Use --searcher random --scheduler pbt"
        )
    return None


def drawn_refusal(drawn: Collection[str], searcher: str, scheduler: str) -> str | None:
    """Returns the reason why the pair cannot work with `sample_from` entries; otherwise None."""
    if not drawn:
        return None
    names = ", ".join(drawn)
    if searcher not in ("random", "grid"):
        return (
            f"--searcher {searcher} cannot work with sample_from ({names}): its model needs "
            "domains. Use --searcher random, or give a domain: "
            f"--set '{next(iter(drawn))}=loguniform(1e-5, 1e-2)'"
        )
    if scheduler == "pbt":
        return (
            f"--scheduler pbt cannot work with sample_from ({names}): PBT changes the config of a "
            "running trial, and these entries would keep their values. Use --scheduler asha"
        )
    return None


def default_scheduler(searcher: str) -> str:
    """Returns the default scheduler for a searcher."""
    return "bohb" if searcher == "bohb" else "asha"
