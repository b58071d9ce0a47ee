"""Dependencies: what a reducer reads beside its own state, named by the reducer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from ..values.keys import Key
from ..values.snapshot import WorkflowSnapshot
from .actions import Action

StateT = TypeVar("StateT")
PayloadT = TypeVar("PayloadT")
StateT_contra = TypeVar("StateT_contra", contravariant=True)
PayloadT_contra = TypeVar("PayloadT_contra", contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

Named = tuple[type[Any], Key]
"""A workflow: its mapped class, and its key."""


class DependentReducer(Generic[StateT_contra, PayloadT_contra, ResultT_co]):
    """A reducer that :func:`depends_on` other workflows; call it as the function."""

    def __init__(
        self,
        function: Callable[..., ResultT_co],
        dependencies: Callable[..., Iterable[Named]],
    ) -> None:
        self.function = function
        self.dependencies = dependencies
        self.__doc__ = function.__doc__

    def __call__(
        self,
        state: StateT_contra,
        action: Action[PayloadT_contra],
        others: Sequence[WorkflowSnapshot[Any]] = (),
    ) -> ResultT_co:
        """Run the function on *others*, in the order in which they were named."""
        return self.function(state, action, others)


def depends_on(
    dependencies: Callable[[StateT, Action[PayloadT]], Iterable[Named]],
) -> Callable[
    [Callable[[StateT, Action[PayloadT], Sequence[WorkflowSnapshot[Any]]], ResultT]],
    DependentReducer[StateT, PayloadT, ResultT],
]:
    """Name the workflows that a reducer reads, and let its commit guard them.

    *dependencies* is called with a state and an action, and returns pairs of a mapped
    class and a workflow key. The ReducerService reads these rows before it calls the
    reducer, which gets their snapshots, in the same order, as its third argument. At
    the commit they are locked together with the row of the action, and their versions
    are compared: if one has moved, the attempt is lost, as after any conflict, and the
    service reads again and calls the reducer again. The *role* of the StateConflict
    is ``read`` then.

    An action that names a workflow that does not exist raises WorkflowNotFound. The
    rows must be in the database of the service's class.

    >>> @depends_on(lambda state, action: [(Doctor, action.payload)])  # doctest: +SKIP
    ... def go_off_call(state, action, others):
    ...     (colleague,) = others
    ...     return OnCall(on_call=not colleague.state.on_call)
    """

    def decorate(
        reducer: Callable[
            [StateT, Action[PayloadT], Sequence[WorkflowSnapshot[Any]]], ResultT
        ],
    ) -> DependentReducer[StateT, PayloadT, ResultT]:
        return DependentReducer(reducer, dependencies)

    return decorate
