-- A vmhost that can restore again what it had left asleep wakes it, but nothing of an account over its hard limit.

grant select (over_limit_at) on accounts to berth_vmhost;
