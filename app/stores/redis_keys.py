"""Every Redis key that Tally uses: its name, type, expiry and writer.

Each name follows `tally:{<shard>}:`, where <shard> is a number from 0. The braces are Redis Cluster's hash tag: all
keys of a shard share a hash slot, so that a script may use them together. <start> is the UTC second at which a time
step begins. <visitors> is "user:" or "session:" and an event name, or nothing for all events. A bucket of events holds
the sum of all events under the empty name. The writers are methods of RedisStore and the scripts in lua/.

name                            type     expires after                written by        contents
------------------------------  -------  ---------------------------  ----------------  -------------------------
tags                            string   never                        open              number of shards
zone                            string   never                        open              time zone of the days
epoch                           string   never                        record_data_loss  id of the last data loss
news                            channel  never                        publish           messages between nodes
source:<process>                hash     SOURCE_TTL_SECONDS           offset            offset, answers: last results
source:<partition>              hash     never                        offset            the same, and a note
unfinished                      hash     SOURCE_TTL_SECONDS / 2       write             changes that shards may lack
total:0                         hash     never                        count, write      total by event
total:0:imported:<id>           hash     never                        write             hits imported from a Redis
minute:<start>                  hash     never                        count, write      hits by event
hour:<start>                    hash     never                        count, write      hits by event
day:<start>                     hash     never                        count, write      hits by event
day:<start>:offset              hash     never                        write             correction by event
day:<start>:part:<second>       hash     never                        write             counts before a reset
day:<start>:generation          hash     never                        write             number of changes of the day
day:<start>:log                 hash     never                        write             one JSON field per change
minute:<start>:<visitors>       hash     VISITOR_MINUTES_TTL_SECONDS  count             hits by visitor
day:<start>:<visitors>          hash     never                        count, write      hits by visitor
total:0:<visitors>              hash     never                        count, write      hits by visitor
seen:minute:<start>:<visitors>  string   VISITOR_MINUTES_TTL_SECONDS  count             HyperLogLog of the visitors
seen:day:<start>:<visitors>     string   never                        count, write      HyperLogLog of the visitors
seen:total:0:<visitors>         string   never                        count, write      HyperLogLog of the visitors
ofs:minute:<start>              set      VISITOR_MINUTES_TTL_SECONDS  count             dimensions of that minute
ofs:day:<start>                 set      never                        count, write      dimensions of that day
ofs:total:0                     set      never                        count, write      dimensions of the totals
starts:<step>                   zset     never                        count, write      starts of the step's buckets
key:<id>                        string   2 * IDEMPOTENCY_TTL_SECONDS  count             request, minute, date, result
keys                            zset     2 * IDEMPOTENCY_TTL_SECONDS  count             live key ids by UTC minute
keys:<client>                   zset     2 * IDEMPOTENCY_TTL_SECONDS  count             the same, of one client
alerts                          hash     never                        records           alerts
deliveries:<id>                 hash     never                        records           deliveries of an alert
goals                           hash     never                        records           goals by event
notes                           hash     never                        records           notes on the timeline
shares                          hash     never                        records           shared links
sketch                          string   never                        sketch, write     used only inside a script
"""

from functools import lru_cache

from app.domain.buckets import CORRECTION, CORRECTION_LOG, GENERATION, SKETCH, TOTAL, Bucket
from app.domain.calendar import TimeSlot
from app.domain.counting import Commit, DayChange, visitor_buckets

SHARD_COUNT_KEY = "tags"
ZONE_KEY = "zone"
EPOCH_KEY = "epoch"
CHANNEL = "news"
SCRATCH_SKETCH_KEY = "sketch"
UNFINISHED_KEY = "unfinished"


def key_prefix(shard: int) -> str:
    """Return how each key of a shard begins."""
    return f"tally:{{{shard}}}:"


def source_key(source: str) -> str:
    """Return the key of a source's offset and last results."""
    return f"source:{source}"


def bucket_key(bucket: Bucket) -> str:
    """Return the key of a bucket's counts."""
    return f"{bucket.step}:{bucket.start}:{bucket.dimension}" if bucket.dimension else f"{bucket.step}:{bucket.start}"


def hll_key(bucket: Bucket) -> str:
    """Return the key of the HyperLogLog of a bucket of visitors, or of the bucket of its registers."""
    return f"seen:{bucket.step}:{bucket.start}:{bucket.dimension.removeprefix(SKETCH)}"


def dimensions_key(bucket: Bucket) -> str:
    """Return the key of the set of dimensions that exist for a bucket's step and start."""
    return f"ofs:{bucket.step}:{bucket.start}"


def starts_key(step: str) -> str:
    """Return the key of the starts of all buckets of a step."""
    return f"starts:{step}"


def member_keys(bucket: Bucket) -> list[str]:
    """Return every key that a script may use for a bucket with a dimension."""
    return [bucket_key(bucket), hll_key(bucket), dimensions_key(bucket)]


def commit_keys(commit: Commit) -> dict[str, None]:
    """Return every key that count.lua may use for a commit. While a slot moves, Redis Cluster has to know them all."""
    keys: dict[str, None] = {}
    for slot in {group.slot for group in commit}:
        keys |= _slot_keys(slot)
    for bucket in {b for group in commit for visit in group.visits for b, _ in visitor_buckets(group.slot, visit)}:
        keys |= dict.fromkeys(member_keys(bucket))
    for group in commit:
        if group.key:
            keys |= {f"key:{group.key.id}": None, f"keys:{group.key.client}": None}
    return keys


@lru_cache(maxsize=256)  # nearly every commit is in the current minute
def _slot_keys(slot: TimeSlot) -> dict[str, None]:
    """Return the keys that any commit in this time slot may use."""
    dimensions = Bucket("day", slot.day, CORRECTION), Bucket("day", slot.day, GENERATION)
    starts = map(starts_key, ("minute", "hour", "day"))
    return dict.fromkeys(["keys", *starts, *map(bucket_key, slot.buckets + dimensions)])


def change_keys(change: DayChange) -> list[str]:
    """Return every key that write.lua may use for an administrative change."""
    day = Bucket("day", change.slot.day)
    keys = [bucket_key(day._replace(dimension=dimension)) for dimension in (CORRECTION_LOG, GENERATION)]
    keys.append(UNFINISHED_KEY)
    for write in change.writes:
        keys += [bucket_key(write.bucket)] if write.op == "take" else member_keys(write.bucket)
    keys += [starts_key(step) for step in {write.bucket.step for write in change.writes} - {TOTAL.step}]
    if any(write.op == "merge" for write in change.writes):
        keys.append(SCRATCH_SKETCH_KEY)
    return keys
