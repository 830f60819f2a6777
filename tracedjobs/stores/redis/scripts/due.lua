-- The entries of an index whose moment has come on the server's clock, earliest first: score, entry, …
-- KEYS: index      ARGV: how many, how many µs the index counts as one, the score to begin behind
local time = redis.call('TIME')
local now = string.format('%.0f', math.floor((time[1] * 1000000 + time[2]) / tonumber(ARGV[2])))
local entries =
  redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[3], now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local found = {}
for at = 1, #entries, 2 do
  found[at] = string.format('%.0f', entries[at + 1])
  found[at + 1] = entries[at]
end
return found
