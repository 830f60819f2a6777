-- Adds to the totals of a shard.
-- KEYS: totals      ARGV: fields, and what is added to each
for at = 1, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[at], ARGV[at + 1]) end
return 1
