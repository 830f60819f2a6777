-- Adds to the totals of a shard.
-- KEYS: totals      ARGV: fields, and as many texts of what is added to each
local half = #ARGV / 2
for at = 1, half do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[at], ARGV[half + at]) end
return 1
