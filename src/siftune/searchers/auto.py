"""Which searcher suits a space and a budget: `--searcher auto`."""

from siftune.space import Space

ENOUGH_RESULTS = 10  # below these no model is asked; optuna's and bayesopt's own default
MANY_TRIALS = 200  # a Gaussian process costs the cube of this, TPE less than its square


def choose(space: Space, *, trials: int, slots: int, scheduler: str | None) -> tuple[str, str]:
    """The name of a searcher, to be taken with its default options, and the reason in a sentence.

    `slots` is the number of trials that run at once.
    """
    if scheduler == "bohb":
        return "bohb", "the bohb scheduler was made for the bohb searcher."
    if scheduler == "pbt":
        return "random", "pbt changes the configs of its trials itself; they start out at random."
    size = space.size()
    if size is not None and size <= trials:
        return "grid", f"the space has {size} configs, and {trials} trials try every one."
    if trials < 2 * slots:
        return "random", (
            f"{trials} trials in {slots} slots leave fewer than two rounds to learn from."
        )
    if trials - slots <= ENOUGH_RESULTS:
        return "random", f"{trials} trials are too few for a model of the results."
    if trials > MANY_TRIALS:
        return (
            "optuna",
            f"{trials} trials are more than a Gaussian process takes at this pace: TPE.",
        )
    # A Gaussian process sees a category or an inactive parameter as just another coordinate; trees
    # of densities fit such spaces better (Bergstra et al. 2011; Eggensperger et al. 2013).
    parameters = list(space.parameters.values())
    awkward = sum(bool(p.condition) or p.domain.kind == "category" for p in parameters)
    if 2 * awkward > len(parameters):
        return "optuna", "more than half of the parameters are categories or conditional: TPE."
    if trials < 2 * (1 + len(parameters)):
        return "optuna", f"{trials} trials are few for {len(parameters)} parameters: TPE."
    # It won the NeurIPS 2020 challenge, of 128 trials in batches of 8 (Turner et al. 2021,
    # arXiv:2104.10201).
    return "hebo", f"HEBO is the strongest on mostly numeric spaces in up to {MANY_TRIALS} trials."
