-- How many jobs indexes have, and the birth of the oldest of each: size, birth, …
-- KEYS: indexes
local found = {}
for at, key in ipairs(KEYS) do
  found[2 * at - 1] = redis.call('ZCARD', key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  found[2 * at] = first[2] and string.format('%.0f', first[2]) or ''
end
return found
