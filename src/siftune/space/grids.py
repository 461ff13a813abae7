"""The points of a grid."""

from collections.abc import Iterator, Sequence

from siftune.space import domains
from siftune.space.domains import Domain, Value


def product(values: Sequence[Sequence[Value]]) -> Iterator[tuple[Value, ...]]:
    """Yields what itertools.product does, without a copy of each sequence, which may be long."""
    if not values:
        yield ()
        return
    for first in values[0]:
        for rest in product(values[1:]):
            yield (first, *rest)


def discretised(domain: Domain) -> str:
    assert isinstance(domain, domains.Float)
    points = [domain.decode(k / 2) for k in range(3)]
    return f"choice([{', '.join(f'{point:.3g}' for point in points)}])"
