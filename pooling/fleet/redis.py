"""A store in Redis or Valkey: a hash with a field for each process, and a script that decides as `Ledger.renew` does.

A restart, or a failover to a replica, is noticed by the server's ``run_id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._masking import split
from .model import TTL, Answer, Request, Terms
from .stores import PATIENCE, StoreError

__all__ = ["RedisStore"]

_RENEW = """
local key, member = KEYS[1], ARGV[1]
local number, need, like, held = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local size, floor, declared, ttl = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local info = redis.pcall('INFO', 'server')
local epoch = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or 'unknown'

local rows, known, learning, all_over, any = {}, nil, 0, true, false
local stored = redis.call('HGETALL', key)
for place = 1, #stored, 2 do
    local name, text = stored[place], stored[place + 1]
    if name == '@epoch' then known = text
    elseif name == '@learning' then learning = tonumber(text)
    else
        local a, b, c, d, e = string.match(text, '(%S+) (%S+) (%S+) (%S+) (%S+)')
        local row = {need = tonumber(a), held = tonumber(b), share = tonumber(c)}
        row.till, row.number, any = tonumber(d), tonumber(e), true
        if row.till > now then all_over = false end
        rows[name] = row
    end
end
if known ~= epoch or (any and all_over and declared < 0) then
    learning = now + ttl
    redis.call('HSET', key, '@epoch', epoch, '@learning', string.format('%.6f', learning))
end
for name, row in pairs(rows) do
    if row.till <= now and name ~= member then
        redis.call('HDEL', key, name)
        rows[name] = nil
    end
end
local own = rows[member]
local late = own ~= nil and number <= own.number
if not late then
    local share = held
    if own then share = own.share end
    own = {need = need, held = held, share = share, till = now + ttl, number = number}
    rows[member] = own
end

local least, members, wants = 0, 0, {}
for name, row in pairs(rows) do
    members = members + 1
    row.want = math.max(row.need, floor)
    wants[members] = row.want
end
if declared >= 0 then
    least = floor
    size = size - floor * math.max(0, declared - members)
end
table.sort(wants)
local top, over, left, remaining = math.huge, 0, members, math.max(0, size)
for _, want in ipairs(wants) do
    if want * left > remaining then
        top, over = math.floor(remaining / left), remaining % left
        break
    end
    remaining, left = remaining - want, left - 1
end
local sum, coming, short = 0, 0, 0
for name, row in pairs(rows) do
    local holds = math.max(row.held, least)
    sum = sum + holds
    short = short + math.max(0, math.min(row.want, top) - holds)
    if name ~= member then coming = coming + math.max(0, holds - math.max(row.share, least)) end
end
local holds, free = math.max(own.held, least), math.max(0, size - sum)
local mine, share = math.min(own.want, top), own.share
if not late then
    if now < learning then
        share = math.max(holds, math.min(floor, holds + free))
    else
        short = short - math.max(0, mine - holds)
        local more = holds + math.max(0, free - short)
        if top == math.huge then more = math.min(like, more)
        else more = math.min(own.want, top + (over > 0 and 1 or 0), more) end
        local lack = short - (size - sum) - coming
        if lack > 0 then more = math.min(more, holds - lack) end
        share = math.max(math.min(mine, holds + free), more)
    end
    share = math.max(share, least)
    own.share, own.held = share, math.max(own.held, share)
    redis.call('HSET', key, member,
        string.format('%d %d %d %.6f %d', own.need, own.held, own.share, own.till, own.number))
    redis.call('EXPIRE', key, 604800)
end
return {late and 1 or 0, share, mine, sum - holds, members, string.format('%.6f', math.max(0, learning - now))}
"""

_RELEASE = """
local text = redis.call('HGET', KEYS[1], ARGV[1])
if text and tonumber(string.match(text, '(%S+)$')) < tonumber(ARGV[2]) then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""


class RedisStore:
    """A hash in Redis.

    Args:
        url: As for ``redis.Redis.from_url``.
        name: Of the budget.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: The URL is not one.
    """

    ttl = TTL
    reserve = 0

    def __init__(self, url: str, name: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ImportError(f'a store in Redis needs redis-py: {error}; pip install "pooling[redis]"') from error
        split(url)  # redis-py would quote what it takes for the port
        # No retries: a repeated request would be a late one.
        self._client = redis.Redis.from_url(
            url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        self._key = f"pooling:budget:{name}"
        self._renew, self._release = map(self._client.register_script, (_RENEW, _RELEASE))

    def renew(self, request: Request, terms: Terms, pools: Sequence[Any]) -> Answer:
        declared = -1 if terms.max_members is None else terms.max_members
        size = terms.total - terms.reserve
        found: Any = self._renew([self._key], [*request, size, terms.floor, declared, terms.ttl])
        late, share, mine, others, members, learning = found
        if late:
            raise StoreError("requests arrived out of order")
        return Answer(share, mine, others, members, float(learning))

    def release(self, member: str, number: int, pools: Sequence[Any]) -> None:
        self._release([self._key], [member, number])

    def close(self) -> None:
        self._client.close()

    def abandon(self) -> None:
        """Nothing: redis-py forgets the parent's connections by itself."""
