"""A metrics page as Prometheus reads it, and what moved between two of them."""

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, frozenset[tuple[str, str]]]


class Scraped:
    """The samples of one page."""

    def __init__(self, samples: dict[Key, float]) -> None:
        self._samples = samples

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over the samples of that name that have these labels; 0 without any."""
        wanted = set(labels.items())
        return sum(
            value
            for (each, its), value in self._samples.items()
            if each == name and wanted <= set(its)
        )

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._samples}

    def since(self, before: "Scraped") -> "Scraped":
        """How far each sample moved."""
        return Scraped({k: v - before._samples.get(k, 0) for k, v in self._samples.items()})


def scraped(page: str) -> Scraped:
    return Scraped(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
    )
