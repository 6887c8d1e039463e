"""The instances of an engine: at most so many, the least recently used goes first."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from query_engine.instance import Instance, InstanceSettings
from query_engine.listing import ListingInstance, listing_shape
from query_engine.question import Needs, Question


class InstancePool:
    """Instances by tenant. A tenant has more than one while its tables change their columns.

    Lock order: a tenant's opening lock, then the pool's, then an instance's.
    """

    def __init__(self, settings: InstanceSettings, instances_max: int) -> None:
        self._settings = settings
        self._max = instances_max
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._instances: list[tuple[str, Instance]] = []  # least recently used first

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._instances)

    def lease(self, question: Question) -> Instance:
        """An instance prepared for it, until `release`. Opens one when none fits (~20 ms)."""
        needs = question.needs
        while True:
            instance = self._find(question, needs)
            if instance is None:
                with self._opening_lock(question.tenant):
                    instance = self._find(question, needs) or self._open(question)
            try:
                prepared = instance.prepare(needs.relations, needs.tables)
            except BaseException:
                self.release(instance)
                raise
            if prepared:
                return instance
            self.release(instance)

    def release(self, instance: Instance, *, broken: bool = False) -> None:
        """End a lease. A broken instance takes no further query."""
        with self._lock:
            instance.users -= 1
            if broken:
                self._retire(instance)
            idle = instance.retired and instance.users == 0
        if idle:
            instance.close()

    def close(self) -> None:
        """Close what is idle now, and the rest as their queries end."""
        with self._lock:
            instances = [instance for _, instance in self._instances]
            for instance in instances:
                self._retire(instance)
            idle = [instance for instance in instances if instance.users == 0]
        for instance in idle:
            instance.close()

    @contextmanager
    def _opening_lock(self, tenant: str) -> Iterator[None]:
        with self._lock:
            lock = self._opening.setdefault(tenant, threading.Lock())
        with lock:
            yield

    def _memory_of(self, question: Question) -> int:
        return question.limits.memory_bytes or self._settings.memory_limit_bytes

    def _find(self, question: Question, needs: Needs) -> Instance | None:
        fits = _fitting(question, needs, self._memory_of(question))
        with self._lock:
            for at in range(len(self._instances) - 1, -1, -1):
                tenant, instance = self._instances[at]
                if tenant == question.tenant and fits(instance):
                    self._instances.append(self._instances.pop(at))
                    instance.users += 1
                    return instance
        return None

    def _open(self, question: Question) -> Instance:
        needs = question.needs
        instance = (
            ListingInstance(needs.whole, self._settings)
            if needs.listing and needs.whole is not None
            else Instance(
                question.directories,
                replace(self._settings, memory_limit_bytes=self._memory_of(question)),
            )
        )
        instance.users = 1
        with self._lock:
            former = self._superseded(question)
            self._instances.append((question.tenant, instance))
            surplus = [*former, *self._surplus()]
        for each in surplus:
            each.close()
        return instance

    def _superseded(self, question: Question) -> Sequence[Instance]:
        """Retire the tenant's that read tables from files which now have segments.

        What they keep in memory would stand beside the new one's. Returns those that are idle.
        """
        relations = question.needs.relations
        found = [
            instance
            for tenant, instance in self._instances
            if tenant == question.tenant and instance.reads_otherwise(relations)
        ]
        for instance in found:
            self._retire(instance)
        return [instance for instance in found if instance.users == 0]

    def _surplus(self) -> Sequence[Instance]:
        """Retire the least recently used beyond the limit; return those that are idle already."""
        oldest = [instance for _, instance in self._instances[: -self._max]]
        for instance in oldest:
            self._retire(instance)
        return [instance for instance in oldest if instance.users == 0]

    def _retire(self, instance: Instance) -> None:
        instance.retired = True
        self._instances = [each for each in self._instances if each[1] is not instance]


def _fitting(
    question: Question, needs: Needs, memory_limit_bytes: int
) -> Callable[[Instance], bool]:
    """The test of instances for one question."""
    if needs.listing and needs.whole is not None:
        shape = listing_shape(needs.whole)
        return lambda instance: isinstance(instance, ListingInstance) and instance.shape == shape
    directories = frozenset(question.directories)
    return lambda instance: (
        not isinstance(instance, ListingInstance)
        and instance.memory_limit_bytes == memory_limit_bytes
        and directories <= instance.directories
        and instance.fits(needs.relations, needs.whole)
        and instance.fits_tables(needs.tables)
    )
