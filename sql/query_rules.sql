-- weir.query_rules and its functions: what they take, what they show, who may call them. That rules are enforced, and
-- survive a restart, is test/t/040_query_rules.pl's.

-- made, shown, replaced, dropped; negative ids are as good as any
SELECT weir.limit_query(101, 4);
SELECT weir.limit_query(-102, 262143, 'nightly report', '36 hours');
SELECT weir.block_query(103);
SELECT weir.block_query(queryid => 104, reason => 'incident', ttl => '90 min');
SELECT queryid, action, max_active, reason, created_at <= clock_timestamp() AS created, expires_at - created_at AS ttl,
       active, hits, refused, last_refused_at
FROM weir.query_rules ORDER BY queryid;
SELECT weir.limit_query(103, 1, 'instead');
SELECT weir.block_query(101, '');
SELECT queryid, action, max_active, reason FROM weir.query_rules WHERE queryid IN (101, 103) ORDER BY queryid;
SELECT weir.drop_query_rule(104);
SELECT weir.drop_query_rule(104);

-- not undone
BEGIN;
SELECT weir.block_query(105);
ROLLBACK;
SELECT weir.drop_query_rule(105);

-- without identifiers no rule can match
SET compute_query_id = off;
SELECT weir.block_query(105);
RESET compute_query_id;
SELECT weir.drop_query_rule(105);

-- mistakes
SELECT weir.limit_query(NULL, 1);
SELECT weir.limit_query(0, 1);
SELECT weir.limit_query(101, NULL);
SELECT weir.limit_query(101, 0);
SELECT weir.limit_query(101, -1);
SELECT weir.limit_query(101, 262144);
SELECT weir.limit_query(101, 1, repeat('x', 201));
SELECT weir.limit_query(101, 1, NULL, '0');
SELECT weir.limit_query(101, 1, NULL, '-1 s');
SELECT weir.limit_query(101, 1, NULL, '178000000 years');
SELECT weir.block_query(NULL);
SELECT weir.block_query(0);
SELECT weir.block_query(101, repeat('ä', 101));
SELECT weir.block_query(101, NULL, '0');
SELECT weir.drop_query_rule(NULL);
SELECT weir.drop_query_rule(0);
SELECT queryid, action, reason FROM weir.query_rules WHERE queryid = 101;

-- the longest reason
SELECT weir.block_query(101, repeat('x', 200));
SELECT length(reason) FROM weir.query_rules WHERE queryid = 101;

-- a full table replaces, and takes no more
SELECT count(weir.limit_query(1000 + i, 1)) FROM generate_series(1, 253) i;
SELECT count(*) FROM weir.query_rules;
SELECT weir.block_query(9999);
\set VERBOSITY sqlstate
SELECT weir.block_query(9999);
SELECT weir.block_query(NULL);
SELECT weir.block_query(0);
SELECT weir.limit_query(101, 0);
SELECT weir.block_query(101, repeat('x', 201));
SELECT weir.block_query(101, NULL, '0');
\set VERBOSITY default
SELECT weir.block_query(1001);
SELECT weir.drop_query_rule(1002);
SELECT weir.block_query(9999);
SELECT action FROM weir.query_rules WHERE queryid IN (1001, 9999);
SELECT count(*) FILTER (WHERE weir.drop_query_rule(queryid)) AS dropped FROM weir.query_rules;
SELECT count(*) FROM weir.query_rules;

-- who may
CREATE ROLE regress_weir_nobody;
CREATE ROLE regress_weir_monitor IN ROLE pg_monitor;
SET ROLE regress_weir_nobody;
SELECT weir.limit_query(101, 1);
SELECT weir.block_query(101);
SELECT weir.drop_query_rule(101);
SELECT * FROM weir.query_rules;
SET ROLE regress_weir_monitor;
SELECT count(*) FROM weir.query_rules;
SELECT weir.block_query(101);
RESET ROLE;
GRANT EXECUTE ON FUNCTION weir.block_query, weir.drop_query_rule TO regress_weir_nobody;
SET ROLE regress_weir_nobody;
SELECT weir.block_query(101);
SELECT weir.drop_query_rule(101);
RESET ROLE;
REVOKE EXECUTE ON FUNCTION weir.block_query, weir.drop_query_rule FROM regress_weir_nobody;
DROP ROLE regress_weir_nobody, regress_weir_monitor;
