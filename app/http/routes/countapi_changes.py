"""/create, /set, /update, /reset and /delete as in CountAPI and Abacus, also by GET.

Tally has no key and no bounds for a single counter. Adding 1 needs the write role. All other changes need what PUT and
DELETE /event/{name} need.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app import corrections
from app.domain.calendar import Clock
from app.domain.counting import AMOUNT_MAX, COUNT_MAX
from app.group_commit import GroupCommitter
from app.http.bots import is_unseen
from app.http.errors import Problem, accepted_or_raise
from app.http.openapi import error_responses
from app.http.permissions import Permissions
from app.http.problem_kinds import COUNTER_EXISTS, INVALID_REQUEST
from app.http.routes.admin import plan_applier
from app.http.routes.countapi import MISSING, RESPONSES, Call, Found, parse_counter, parse_default, read_total
from app.stores.base import CounterStore
from app.stores.results import Value

Number = Annotated[int, Query(ge=0, le=COUNT_MAX)]
Amount = Annotated[int | None, Query(ge=-COUNT_MAX, le=AMOUNT_MAX)]
Created = TypedDict("Created", {"namespace": str, "key": str, "value": int})
Changed = TypedDict("Changed", {"old_value": int, "value": int})
Deleted = TypedDict("Deleted", {"status": str, "message": str})

_BOUNDS = ("enable_reset", "update_lowerbound", "update_upperbound")


class CounterChanges:
    """The changes of a counter. Each is a correction in the history of the day, except an addition, which are hits."""

    def __init__(self, store: CounterStore, committer: GroupCommitter, clock: Clock, names_max: int) -> None:
        self._store, self._committer, self._names_max = store, committer, names_max
        self._apply_plan = plan_applier(committer, clock)

    async def create(self, event: str, total: int) -> None:
        """Make a counter with this total. Raises Problem (409) if it exists."""

        def first(value: Value | None) -> Value:
            if value:
                raise Problem(COUNTER_EXISTS, "this counter exists already; use /set to change it")
            return Value(0, total)

        await self._revise(event, first)

    async def set_total(self, event: str, total: int) -> int:
        """Set the total, which today's count does not exceed; return the total before."""
        record = await self._revise(event, lambda value: Value(min(value.count, total) if value else 0, total))
        return record.before.total

    async def subtract(self, event: str, amount: int) -> int:
        """Subtract from the total, and from today's count down to 0; return the new total. Raises Problem (422)."""

        def less(value: Value | None) -> Value:
            count, total = (value.count, value.total) if value else (0, 0)
            if total < amount:
                raise Problem(INVALID_REQUEST, f"amount: the total is {total}, and must not fall below 0")
            return Value(max(0, count - amount), total - amount)

        return (await self._revise(event, less)).after.total

    async def delete(self, event: str) -> None:
        """Delete the counter and all its data."""
        await self._apply_plan(lambda slot, at: corrections.delete(self._store, slot, at, event))

    async def _revise(self, event: str, revised: corrections.Revision) -> corrections.CorrectionRecord:
        return await self._apply_plan(
            lambda slot, at: corrections.revise(self._store, slot, at, event, revised, self._names_max)
        )


def add_routes(
    router: APIRouter,
    store: CounterStore,
    committer: GroupCommitter,
    clock: Clock,
    permissions: Permissions,
    names_max: int,
) -> None:
    """Add the routes that change counters. CountAPI has them by GET, and Abacus by POST with a namespace.

    The store accepts `names_max` event names.
    """
    changes = CounterChanges(store, committer, clock, names_max)
    _add_changes(router, store, changes)
    _add_update(router, store, committer, permissions, changes)


def _add_changes(router: APIRouter, store: CounterStore, changes: CounterChanges) -> None:
    options: dict[str, Any] = {"responses": RESPONSES | MISSING}
    creating: dict[str, Any] = {"response_model": Created, "responses": RESPONSES | error_responses(409)}
    for path, parse in (("{key}", parse_default), ("{ns}/{key}", parse_counter)):
        Called = Annotated[Call, Depends(parse)]  # noqa: N806 # a type

        async def make_counter(request: Request, call: Called, value: Number = 0, initializer: Number = 0) -> Response:
            """Make a counter with a total: `value` as in CountAPI, `initializer` as in Abacus."""
            if bounds := [name for name in _BOUNDS if name in request.query_params]:
                raise Problem(INVALID_REQUEST, f"{bounds[0]}: counters of Tally have no bounds; leave it out")
            await changes.create(call.event, value or initializer)
            body = {"namespace": call.namespace, "key": call.key, "value": value or initializer}
            return call.respond(body, 201 if request.method == "POST" else 200)

        async def set_value(call: Called, value: Number) -> Response:
            """Set the total of a counter, or return 404 if there is none."""
            if await read_total(store, call.event) is None:
                return call.missing(old_value=None)
            return call.respond({"old_value": await changes.set_total(call.event, value), "value": value})

        router.get(f"/create/{path}", **creating)(make_counter)
        router.get(f"/set/{path}", response_model=Changed, **options)(set_value)

    # Abacus has the functions with a namespace, which are those of the last path.
    router.post("/create/{ns}/{key}", status_code=201, **creating)(make_counter)
    router.post("/set/{ns}/{key}", response_model=Changed, **options)(set_value)

    @router.post("/reset/{ns}/{key}", response_model=Changed, **options)
    async def reset_value(call: Called) -> Response:
        """Set the total of a counter to 0."""
        return await set_value(call, 0)

    @router.post("/delete/{ns}/{key}", response_model=Deleted, **options)
    async def delete_counter(call: Called) -> Response:
        """Delete a counter and all its data."""
        if await read_total(store, call.event) is None:
            return call.missing()
        await changes.delete(call.event)
        return call.respond({"status": "ok", "message": f"Deleted key: {call.event}"})


def _add_update(
    router: APIRouter, store: CounterStore, committer: GroupCommitter, permissions: Permissions, changes: CounterChanges
) -> None:
    options: dict[str, Any] = {"response_model": Found, "responses": RESPONSES | MISSING}
    for path, parse in (("{key}", parse_default), ("{ns}/{key}", parse_counter)):
        Called = Annotated[Call, Depends(parse)]  # noqa: N806 # a type

        async def add_to_value(request: Request, call: Called, amount: Amount = None, value: Amount = None) -> Response:
            """Add to the total: `amount` as in CountAPI, `value` as in Abacus. All but 1 needs an admin key."""
            added = amount or value
            if not added:
                raise Problem(INVALID_REQUEST, "amount: expected a whole number other than 0")
            if added != 1:
                permissions.authorize(request.scope, "PUT /event/{name}")
            total = await read_total(store, call.event)
            if total is None:
                return call.missing()
            if added < 0:
                total = await changes.subtract(call.event, -added)
            elif not is_unseen(request.headers):
                total = accepted_or_raise(await committer.submit({call.event: added}))[call.event].total
            return call.respond({"value": total})

        router.get(f"/update/{path}", **options)(add_to_value)
    router.post("/update/{ns}/{key}", **options)(add_to_value)
