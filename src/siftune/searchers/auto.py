"""Chooses the searcher that suits a space and a budget, for `--searcher auto`."""

from siftune.space import Space

ENOUGH_RESULTS = 10  # no model is fitted to fewer; the default of optuna and bayesopt
MANY_TRIALS = 200  # a Gaussian process costs the cube of the trials, TPE less than the square


def choose(space: Space, *, trials: int, slots: int, scheduler: str | None) -> tuple[str, str]:
    """Returns the name of a searcher, to be used with its default options, and the reason.

    `slots` is the number of trials that run at once.
    """
    if scheduler == "bohb":
        return "bohb", "the scheduler bohb requires the searcher bohb."
    if scheduler == "pbt":
        return "random", "pbt changes the configs of its trials, which are random at first."
    if space.drawn:
        return "random", f"no model can learn from sample_from ({', '.join(space.drawn)})."
    size = space.size()
    if size is not None and size <= trials:
        return "grid", f"the space has {size} configs, so {trials} trials can try all of them."
    if trials < 2 * slots:
        return "random", (
            f"less than two rounds of trials in {slots} slots are too few to learn from."
        )
    if trials - slots <= ENOUGH_RESULTS:
        return "random", f"{trials} trials are too few to fit a model to the results."
    if trials > MANY_TRIALS:
        return (
            "optuna",
            f"{trials} trials are too many for a Gaussian process, so its TPE is used.",
        )
    # A Gaussian process treats a category or an inactive parameter as any other coordinate. TPE
    # suits such spaces better (Bergstra et al. 2011; Eggensperger et al. 2013).
    parameters = list(space.parameters.values())
    awkward = sum(bool(p.condition) or p.domain.kind == "category" for p in parameters)
    if 2 * awkward > len(parameters):
        return "optuna", "most parameters are categories or conditional, so its TPE is used."
    if trials < 2 * (1 + len(parameters)):
        return "optuna", (
            f"{trials} trials are few for {len(parameters)} parameters, so its TPE is used."
        )
    return "portfolio", (
        "most parameters are numbers. TPE proposes, or a Gaussian process if trials report once "
        "and take long enough for it."
    )
