-- What the views are: names and types are promised to those who monitor. Who may read them; and weir.reset().

-- A line for each row, as it is: what is added changes no other line.
\pset format unaligned
\pset footer off

-- columns
SELECT c.relname AS view, a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'weir'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
ORDER BY c.relname COLLATE "C", a.attnum;

-- functions
SELECT p.oid::regprocedure::text AS function, p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict,
       p.prosecdef AS definer
FROM pg_proc p WHERE p.pronamespace = 'weir'::regnamespace
ORDER BY p.oid::regprocedure::text COLLATE "C";

-- nothing else; and a view shows all that its function returns
SELECT relkind, count(*) FROM pg_class WHERE relnamespace = 'weir'::regnamespace GROUP BY relkind;
SELECT p.proname, p.proargnames[o.n] AS "column"
FROM pg_proc p, LATERAL generate_subscripts(p.proargnames, 1) o(n)
WHERE p.pronamespace = 'weir'::regnamespace AND p.proargmodes[o.n] = 'o' AND p.pronargs = 0
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass('weir.' || p.proname) AND a.attname = p.proargnames[o.n]);
SELECT extname, extrelocatable, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'pg_weir';

-- what has no comment
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'weir'::regnamespace AND c.relkind = 'v' AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT c.relname, a.attname
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'weir'::regnamespace AND c.relkind = 'v' AND a.attnum > 0 AND col_description(c.oid, a.attnum) IS NULL
ORDER BY 1, a.attnum;
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.pronamespace = 'weir'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;

-- the views work
SELECT mode, adaptive, limit_now > 0 AS has_limit, limit_reason IS NOT NULL AS has_reason, lent, waiting, since <= clock_timestamp() AS since
FROM weir.stat_admission;
SELECT class, weight, reserved, max_active, queue_size, queue_timeout FROM weir.stat_class;
SELECT count(*) FROM weir.activity WHERE pid = pg_backend_pid();
SELECT class, weight, max_startups, startup_rate, waiting FROM weir.stat_startup;
SELECT adaptive, max_startups > 0 AS has_limit, waiting FROM weir.startup_limit;
SELECT count(*) FROM weir.storms;
SELECT count(*) FROM weir.stat_replica;
SELECT count(*) FROM weir.replica_lag_history;
SELECT count(*) <= 600 AS ten_minutes, count(*) FILTER (WHERE at > clock_timestamp()) AS future FROM weir.admission_history;

-- who may
CREATE ROLE regress_weir_nobody;
CREATE ROLE regress_weir_monitor IN ROLE pg_monitor;
SELECT r.rolname, c.relname FROM pg_class c, pg_roles r
WHERE c.relnamespace = 'weir'::regnamespace AND c.relkind = 'v' AND r.rolname LIKE 'regress_weir_%'
  AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
ORDER BY r.rolname COLLATE "C", c.relname COLLATE "C";
SELECT r.rolname, p.oid::regprocedure::text AS function FROM pg_proc p, pg_roles r
WHERE p.pronamespace = 'weir'::regnamespace AND r.rolname LIKE 'regress_weir_%' AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
ORDER BY r.rolname COLLATE "C", p.oid::regprocedure::text COLLATE "C";
SET ROLE regress_weir_nobody;
SELECT * FROM weir.stat_admission;
SELECT * FROM weir.stat_class;
SELECT * FROM weir.activity;
SELECT * FROM weir.admission_history;
SELECT * FROM weir.stat_startup;
SELECT * FROM weir.startup_limit;
SELECT * FROM weir.storms;
SELECT * FROM weir.stat_replica;
SELECT * FROM weir.replica_lag_history;
SELECT * FROM weir.stat_admission();
SELECT * FROM weir.stat_class();
SELECT * FROM weir.activity();
SELECT * FROM weir.admission_history();
SELECT weir.reset();
SET ROLE regress_weir_monitor;
SELECT mode FROM weir.stat_admission;
SELECT class FROM weir.stat_class;
SELECT count(*) FROM weir.activity WHERE state = 'waiting';
SELECT count(*) >= 0 AS readable FROM weir.admission_history;
SELECT count(*) FROM weir.stat_replica;
UPDATE weir.stat_admission SET mode = 'off';
SELECT weir.reset();
RESET ROLE;
GRANT EXECUTE ON FUNCTION weir.reset TO regress_weir_nobody;
SET ROLE regress_weir_nobody;
SELECT weir.reset();
RESET ROLE;
REVOKE EXECUTE ON FUNCTION weir.reset FROM regress_weir_nobody;

-- weir.reset() begins anew
SELECT since AS since_before FROM weir.stat_admission \gset
SET SESSION AUTHORIZATION regress_weir_nobody;
SELECT 1;
RESET SESSION AUTHORIZATION;
SELECT admitted > 0 AS admitted FROM weir.stat_admission;
SELECT weir.reset();
SELECT since > :'since_before' AS since FROM weir.stat_admission;
SELECT admitted, queued, refused, timed_out, cancelled, statement_timeout, terminated, client_gone, admitted_over_limit, lendings,
       wait_p50, wait_p95, wait_p99, wait_max
FROM weir.stat_admission;
SELECT class, admitted, queued, refused, timed_out, cancelled, statement_timeout, terminated, client_gone, admitted_over_limit, lendings,
       wait_p50, wait_p95, wait_p99, wait_max
FROM weir.stat_class;

DROP ROLE regress_weir_nobody, regress_weir_monitor;
