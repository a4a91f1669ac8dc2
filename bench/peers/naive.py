"""A first attempt at a counter with FastAPI: one INCR and one emit for each hit."""

import os
from collections import Counter
from typing import Annotated

import redis.asyncio as redis
import socketio
from fastapi import FastAPI, Path, Request
from pydantic import BaseModel
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address

counts: Counter[str] = Counter()
store = redis.from_url(os.environ["REDIS_URL"], decode_responses=True) if "REDIS_URL" in os.environ else None
sio = socketio.AsyncServer(async_mode="asgi")
limiter = Limiter(key_func=get_remote_address)
api = FastAPI()
api.state.limiter = limiter
api.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
app = socketio.ASGIApp(sio, other_asgi_app=api)

Name = Annotated[str, Path(min_length=1, max_length=128)]


class Counted(BaseModel):
    eventName: str  # noqa: N815 # the name in JSON
    count: int


@api.post("/event/{name}")
@limiter.limit("1000000000/second")  # evaluated, but never reached
async def count_event(request: Request, name: Name) -> Counted:  # noqa: ARG001 # slowapi requires the request
    if store:
        count = await store.incr(name)
    else:
        counts[name] += 1
        count = counts[name]
    await sio.emit("update", {"eventName": name, "count": count})
    return Counted(eventName=name, count=count)


@api.get("/events")
async def read_events() -> dict[str, int]:
    if not store:
        return counts
    names = await store.keys()
    return dict(zip(names, map(int, await store.mget(names)), strict=True))
