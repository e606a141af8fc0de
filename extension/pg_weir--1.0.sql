\echo Use "CREATE EXTENSION pg_weir" to load this file. \quit

-- The gate depends on settings alone: dropping this extension takes the views away, not the protection.

-- Made here, not by the control file: so the schema is the extension's, and DROP EXTENSION leaves nothing.
CREATE SCHEMA weir;
COMMENT ON SCHEMA weir IS 'pg_weir: admission control inside the server';
GRANT USAGE ON SCHEMA weir TO PUBLIC;

-- ---- admission --------------------------------------------------------------------------------------------------

CREATE FUNCTION weir.stat_admission(
    OUT mode text,
    OUT adaptive boolean,
    OUT limit_now integer,
    OUT limit_reason text,
    OUT active integer,
    OUT lent integer,
    OUT waiting integer,
    OUT admitted bigint,
    OUT queued bigint,
    OUT refused bigint,
    OUT timed_out bigint,
    OUT cancelled bigint,
    OUT statement_timeout bigint,
    OUT terminated bigint,
    OUT client_gone bigint,
    OUT bypassed bigint,
    OUT admitted_over_limit bigint,
    OUT lendings bigint,
    OUT suspensions bigint,
    OUT suspended integer,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval,
    OUT since timestamptz)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_admission';

CREATE FUNCTION weir.stat_class(
    OUT class text,
    OUT weight integer,
    OUT reserved integer,
    OUT max_active integer,
    OUT queue_size integer,
    OUT queue_timeout interval,
    OUT active integer,
    OUT lent integer,
    OUT waiting integer,
    OUT admitted bigint,
    OUT queued bigint,
    OUT refused bigint,
    OUT timed_out bigint,
    OUT cancelled bigint,
    OUT statement_timeout bigint,
    OUT terminated bigint,
    OUT client_gone bigint,
    OUT bypassed bigint,
    OUT admitted_over_limit bigint,
    OUT lendings bigint,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_class';

CREATE FUNCTION weir.admission_history(
    OUT at timestamptz,
    OUT limit_now integer,
    OUT reason text,
    OUT active real,
    OUT running real,
    OUT lock_waiting real,
    OUT lock_queues real,
    OUT waiting real,
    OUT throughput real,
    OUT oldest_wait interval)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_admission_history';

CREATE FUNCTION weir.activity(
    OUT pid integer,
    OUT class text,
    OUT state text,
    OUT since timestamptz,
    OUT "position" integer,
    OUT role text,
    OUT database text,
    OUT application text,
    OUT address text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_activity';

CREATE FUNCTION weir.reset() RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'weir_reset';

CREATE VIEW weir.stat_admission AS SELECT * FROM weir.stat_admission();
CREATE VIEW weir.stat_class AS SELECT * FROM weir.stat_class();
CREATE VIEW weir.admission_history AS SELECT * FROM weir.admission_history();
CREATE VIEW weir.activity AS
    SELECT a.pid, coalesce(s.usename, a.role::name) AS role, coalesce(s.datname, a.database::name) AS database,
           coalesce(nullif(s.application_name, ''), a.application) AS application,
           coalesce(s.client_addr, a.address::inet) AS address, a.class, a.state, a.since, a.position
    FROM weir.activity() a LEFT JOIN pg_catalog.pg_stat_activity s ON s.pid = a.pid;

COMMENT ON VIEW weir.stat_admission IS 'Admission of transactions since the last weir.reset(): one row over all classes.';
COMMENT ON COLUMN weir.stat_admission.mode IS 'weir.mode in force: off, observe or enforce';
COMMENT ON COLUMN weir.stat_admission.adaptive IS 'whether pg_weir chooses the limit itself (weir.max_active = -1)';
COMMENT ON COLUMN weir.stat_admission.limit_now IS 'slots there are now; NULL: no limit';
COMMENT ON COLUMN weir.stat_admission.limit_reason IS 'why the adaptive limit is what it is: see docs/adaptive-limit.md; NULL when it is fixed';
COMMENT ON COLUMN weir.stat_admission.active IS 'slots held now; may exceed the limit for a moment after it was lowered, or when lent slots are taken back';
COMMENT ON COLUMN weir.stat_admission.lent IS 'transactions now open that lend their slot: their client is silent, or they were stalled';
COMMENT ON COLUMN weir.stat_admission.waiting IS 'transactions waiting now';
COMMENT ON COLUMN weir.stat_admission.admitted IS 'transactions that got a slot';
COMMENT ON COLUMN weir.stat_admission.queued IS 'transactions that had to wait; in observe mode, would have had to';
COMMENT ON COLUMN weir.stat_admission.refused IS 'refused at once because the queue was full (SQLSTATE 53300); in observe mode, would have been';
COMMENT ON COLUMN weir.stat_admission.timed_out IS 'refused after weir.queue_timeout (SQLSTATE 53300)';
COMMENT ON COLUMN weir.stat_admission.cancelled IS 'cancelled while waiting (57014)';
COMMENT ON COLUMN weir.stat_admission.statement_timeout IS 'ended by statement_timeout or transaction_timeout while waiting';
COMMENT ON COLUMN weir.stat_admission.terminated IS 'sessions terminated while waiting';
COMMENT ON COLUMN weir.stat_admission.client_gone IS 'clients that closed their connection while waiting';
COMMENT ON COLUMN weir.stat_admission.bypassed IS 'transactions of superusers, and of pg_monitor reading weir''s views, that needed no slot';
COMMENT ON COLUMN weir.stat_admission.admitted_over_limit IS 'admitted over the limit, because somebody waited for a lock that the waiter held';
COMMENT ON COLUMN weir.stat_admission.lendings IS 'times a slot was lent';
COMMENT ON COLUMN weir.stat_admission.suspensions IS 'times the limit was suspended because every slot was held by stalled transactions; not reset';
COMMENT ON COLUMN weir.stat_admission.suspended IS 'stalled transactions that are not counted now; 0: the limit is in force';
COMMENT ON COLUMN weir.stat_admission.wait_p50 IS 'median wait of those who queued, also of those who left unserved; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_admission.wait_p95 IS '95th percentile of that wait';
COMMENT ON COLUMN weir.stat_admission.wait_p99 IS '99th percentile of that wait';
COMMENT ON COLUMN weir.stat_admission.wait_max IS 'longest such wait';
COMMENT ON COLUMN weir.stat_admission.since IS 'when the counters began, or were reset';

COMMENT ON VIEW weir.stat_class IS 'Admission of transactions since the last weir.reset(): a row per workload class.';
COMMENT ON COLUMN weir.stat_class.class IS 'name of the class';
COMMENT ON COLUMN weir.stat_class.weight IS 'share of the slots while several classes wait';
COMMENT ON COLUMN weir.stat_class.reserved IS 'slots that only this class may use';
COMMENT ON COLUMN weir.stat_class.max_active IS 'the class''s own limit; NULL: none';
COMMENT ON COLUMN weir.stat_class.queue_size IS 'the class''s own bound of its queue; NULL: none';
COMMENT ON COLUMN weir.stat_class.queue_timeout IS 'the longest wait in force for it; NULL: no bound';
COMMENT ON COLUMN weir.stat_class.active IS 'slots its transactions hold now';
COMMENT ON COLUMN weir.stat_class.lent IS 'its transactions now open that lend their slot';
COMMENT ON COLUMN weir.stat_class.waiting IS 'its transactions waiting now';
COMMENT ON COLUMN weir.stat_class.admitted IS 'its transactions that got a slot';
COMMENT ON COLUMN weir.stat_class.queued IS 'its transactions that had to wait; in observe mode, would have had to';
COMMENT ON COLUMN weir.stat_class.refused IS 'refused at once because the queue was full (SQLSTATE 53300); in observe mode, would have been';
COMMENT ON COLUMN weir.stat_class.timed_out IS 'refused after the queue_timeout in force for it (SQLSTATE 53300)';
COMMENT ON COLUMN weir.stat_class.cancelled IS 'cancelled while waiting (57014)';
COMMENT ON COLUMN weir.stat_class.statement_timeout IS 'ended by statement_timeout or transaction_timeout while waiting';
COMMENT ON COLUMN weir.stat_class.terminated IS 'sessions terminated while waiting';
COMMENT ON COLUMN weir.stat_class.client_gone IS 'clients that closed their connection while waiting';
COMMENT ON COLUMN weir.stat_class.bypassed IS 'its transactions of superusers, and of pg_monitor reading weir''s views, that needed no slot';
COMMENT ON COLUMN weir.stat_class.admitted_over_limit IS 'admitted over the limit, because somebody waited for a lock that the waiter held';
COMMENT ON COLUMN weir.stat_class.lendings IS 'times one of its slots was lent';
COMMENT ON COLUMN weir.stat_class.wait_p50 IS 'median wait of those of it who queued, also of those who left unserved; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_class.wait_p95 IS '95th percentile of that wait';
COMMENT ON COLUMN weir.stat_class.wait_p99 IS '99th percentile of that wait';
COMMENT ON COLUMN weir.stat_class.wait_max IS 'longest such wait';

COMMENT ON VIEW weir.admission_history IS 'The limit, and what the server did under it: a row a second over the last ten minutes, oldest first.';
COMMENT ON COLUMN weir.admission_history.at IS 'end of the second';
COMMENT ON COLUMN weir.admission_history.limit_now IS 'slots there were; NULL: no limit';
COMMENT ON COLUMN weir.admission_history.reason IS 'why the limit was this';
COMMENT ON COLUMN weir.admission_history.active IS 'mean number of slots held';
COMMENT ON COLUMN weir.admission_history.running IS 'of these: on a processor, or ready to be';
COMMENT ON COLUMN weir.admission_history.lock_waiting IS 'of active: waiting for heavyweight locks';
COMMENT ON COLUMN weir.admission_history.lock_queues IS 'in how many queues these stand: different holders of locks who are waited for and do not wait themselves';
COMMENT ON COLUMN weir.admission_history.waiting IS 'mean number of transactions waiting for a slot';
COMMENT ON COLUMN weir.admission_history.throughput IS 'transactions admitted per second';
COMMENT ON COLUMN weir.admission_history.oldest_wait IS 'how long the longest waiter had waited at the end of the second';

COMMENT ON VIEW weir.activity IS 'Sessions that hold a transaction slot, lend it, or wait for one; and connections that start or wait to.';
COMMENT ON COLUMN weir.activity.pid IS 'process of the session';
COMMENT ON COLUMN weir.activity.role IS 'the role it logged in as';
COMMENT ON COLUMN weir.activity.database IS 'its database';
COMMENT ON COLUMN weir.activity.application IS 'its application_name';
COMMENT ON COLUMN weir.activity.address IS 'address of the client; NULL: a Unix socket';
COMMENT ON COLUMN weir.activity.class IS 'its workload class';
COMMENT ON COLUMN weir.activity.state IS 'active, lent or waiting, of a transaction; starting, waiting to start, or held (a failed login, for weir.failed_login_rate), of a connection';
COMMENT ON COLUMN weir.activity.since IS 'since when it runs or waits';
COMMENT ON COLUMN weir.activity."position" IS 'how many of its class are ahead of it; NULL unless waiting';

COMMENT ON FUNCTION weir.stat_admission() IS 'What the view weir.stat_admission shows. Takes the gate''s lock for no time: it reads counters.';
COMMENT ON FUNCTION weir.stat_class() IS 'What the view weir.stat_class shows.';
COMMENT ON FUNCTION weir.admission_history() IS 'What the view weir.admission_history shows.';
COMMENT ON FUNCTION weir.activity() IS 'What the view weir.activity joins with pg_stat_activity. Takes both gates'' locks, shared, to see positions.';
COMMENT ON FUNCTION weir.reset() IS 'Resets the statistics of all weir views. Slots, queues and limits are untouched. Superusers, unless granted.';

REVOKE ALL ON FUNCTION weir.stat_admission(), weir.stat_class(), weir.admission_history(), weir.activity(), weir.reset()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_admission(), weir.stat_class(), weir.admission_history(), weir.activity() TO pg_monitor;
GRANT SELECT ON weir.stat_admission, weir.stat_class, weir.admission_history, weir.activity TO pg_monitor;

-- ---- connections ----------------------------------------------------------------------------------------------

CREATE FUNCTION weir.stat_startup(
    OUT class text,
    OUT weight integer,
    OUT max_startups integer,
    OUT startup_rate integer,
    OUT starting integer,
    OUT waiting integer,
    OUT admitted bigint,
    OUT queued bigint,
    OUT refused bigint,
    OUT timed_out bigint,
    OUT terminated bigint,
    OUT client_gone bigint,
    OUT bypassed bigint,
    OUT lendings bigint,
    OUT held bigint,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_startup';

CREATE FUNCTION weir.startup_limit(
    OUT adaptive boolean,
    OUT max_startups integer,
    OUT rate real,
    OUT reason text,
    OUT starting integer,
    OUT waiting integer,
    OUT throughput real,
    OUT login_cost interval,
    OUT established real,
    OUT cpu_idle real)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_startup_limit';

CREATE FUNCTION weir.storms(
    OUT began timestamptz,
    OUT ended timestamptz,
    OUT peak_waiting integer,
    OUT longest_wait interval,
    OUT arrivals bigint,
    OUT admitted bigint,
    OUT unserved bigint,
    OUT roles text,
    OUT addresses text,
    OUT applications text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_storms';

CREATE VIEW weir.stat_startup AS SELECT * FROM weir.stat_startup();
CREATE VIEW weir.startup_limit AS SELECT * FROM weir.startup_limit();
CREATE VIEW weir.storms AS SELECT * FROM weir.storms();

COMMENT ON VIEW weir.stat_startup IS 'Connections at the gate since the last weir.reset(): a row per workload class; logins that fail are class failed_login.';
COMMENT ON COLUMN weir.stat_startup.class IS 'name of the class';
COMMENT ON COLUMN weir.stat_startup.weight IS 'share of the logins while several classes wait';
COMMENT ON COLUMN weir.stat_startup.max_startups IS 'the class''s own limit of connections that start at once; NULL: none';
COMMENT ON COLUMN weir.stat_startup.startup_rate IS 'the class''s own limit of connections per second; NULL: none';
COMMENT ON COLUMN weir.stat_startup.starting IS 'connections now between authentication and their first query';
COMMENT ON COLUMN weir.stat_startup.waiting IS 'connections waiting now';
COMMENT ON COLUMN weir.stat_startup.admitted IS 'connections that were let on; some failed later, for instance for want of the database';
COMMENT ON COLUMN weir.stat_startup.queued IS 'connections that had to wait; in observe mode, would have had to';
COMMENT ON COLUMN weir.stat_startup.refused IS 'refused at once because the queue was full, or max_connections nearly; a failed login is answered instead';
COMMENT ON COLUMN weir.stat_startup.timed_out IS 'refused after weir.startup_timeout, or shortly before authentication_timeout; a failed login is answered instead';
COMMENT ON COLUMN weir.stat_startup.terminated IS 'terminated while waiting';
COMMENT ON COLUMN weir.stat_startup.client_gone IS 'clients that closed their connection while waiting';
COMMENT ON COLUMN weir.stat_startup.bypassed IS 'superusers, replication and, from 16 on, members of pg_use_reserved_connections, who needed no slot';
COMMENT ON COLUMN weir.stat_startup.lendings IS 'times the slot of a login that took longer than weir.stall_timeout was given to one that waited';
COMMENT ON COLUMN weir.stat_startup.held IS 'failed logins whose answer was held back for weir.failed_login_rate; class failed_login only';
COMMENT ON COLUMN weir.stat_startup.wait_p50 IS 'median wait of those who queued, also of those who left unserved; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_startup.wait_p95 IS '95th percentile of that wait';
COMMENT ON COLUMN weir.stat_startup.wait_p99 IS '99th percentile of that wait';
COMMENT ON COLUMN weir.stat_startup.wait_max IS 'longest such wait';

COMMENT ON VIEW weir.startup_limit IS 'How fast connections may start now, and why.';
COMMENT ON COLUMN weir.startup_limit.adaptive IS 'whether pg_weir paces logins itself (weir.max_startups = -1, and no weir.startup_rate)';
COMMENT ON COLUMN weir.startup_limit.max_startups IS 'connections that may start at once; NULL: no limit';
COMMENT ON COLUMN weir.startup_limit.rate IS 'connections that may start per second; NULL: no such limit now';
COMMENT ON COLUMN weir.startup_limit.reason IS 'why that rate: free, room, busy, steady, share, drain or fixed; see docs/connections.md';
COMMENT ON COLUMN weir.startup_limit.starting IS 'connections now between authentication and their first query';
COMMENT ON COLUMN weir.startup_limit.waiting IS 'connections waiting now';
COMMENT ON COLUMN weir.startup_limit.throughput IS 'connections admitted per second, smoothed over about half a second';
COMMENT ON COLUMN weir.startup_limit.login_cost IS 'processor time of a login as far as its own process sees it, smoothed';
COMMENT ON COLUMN weir.startup_limit.established IS 'established sessions that have transactions, smoothed: whom the rate protects';
COMMENT ON COLUMN weir.startup_limit.cpu_idle IS 'idle share of the machine''s processors, 0 to 1, smoothed';

COMMENT ON VIEW weir.storms IS 'The last 100 connection storms, newest first: from when ten connections waited at once, or had left unserved, until nobody waited for five seconds.';
COMMENT ON COLUMN weir.storms.began IS 'when the tenth began to wait, or was refused';
COMMENT ON COLUMN weir.storms.ended IS 'when the last one ceased to wait; NULL: it goes on';
COMMENT ON COLUMN weir.storms.peak_waiting IS 'most connections that waited at once';
COMMENT ON COLUMN weir.storms.longest_wait IS 'longest wait';
COMMENT ON COLUMN weir.storms.arrivals IS 'connections that had to wait, or were refused';
COMMENT ON COLUMN weir.storms.admitted IS 'connections admitted meanwhile';
COMMENT ON COLUMN weir.storms.unserved IS 'of those who waited: refused, timed out, terminated, or gone';
COMMENT ON COLUMN weir.storms.roles IS 'who came: the three most frequent roles, and how often; approximate when there are many';
COMMENT ON COLUMN weir.storms.addresses IS 'the three most frequent client addresses';
COMMENT ON COLUMN weir.storms.applications IS 'the three most frequent application names';

COMMENT ON FUNCTION weir.stat_startup() IS 'What the view weir.stat_startup shows.';
COMMENT ON FUNCTION weir.startup_limit() IS 'What the view weir.startup_limit shows.';
COMMENT ON FUNCTION weir.storms() IS 'What the view weir.storms shows. Takes the connection gate''s lock, shared.';

REVOKE ALL ON FUNCTION weir.stat_startup(), weir.startup_limit(), weir.storms() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_startup(), weir.startup_limit(), weir.storms() TO pg_monitor;
GRANT SELECT ON weir.stat_startup, weir.startup_limit, weir.storms TO pg_monitor;

-- ---- coalescing ---------------------------------------------------------------------------------------------------

CREATE TABLE weir.coalesced_table (
    relation regclass PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now());

-- pg_dump keeps it. A table that was dropped while the library was not loaded has left a number, which must not come back as
-- another table's.
SELECT pg_catalog.pg_extension_config_dump('weir.coalesced_table',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = relation)');

CREATE FUNCTION weir.coalesced_table_changed() RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_coalesced_table_changed';

CREATE TRIGGER changed BEFORE INSERT OR UPDATE OR DELETE ON weir.coalesced_table
    FOR EACH ROW EXECUTE FUNCTION weir.coalesced_table_changed();
CREATE TRIGGER truncated AFTER TRUNCATE ON weir.coalesced_table
    FOR EACH STATEMENT EXECUTE FUNCTION weir.coalesced_table_changed();
ALTER TABLE weir.coalesced_table ENABLE ALWAYS TRIGGER changed;
ALTER TABLE weir.coalesced_table ENABLE ALWAYS TRIGGER truncated;

-- With their owner's rights: who may execute them needs none on the table.
CREATE FUNCTION weir.coalesce_table(relation regclass) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'INSERT INTO weir.coalesced_table (relation) VALUES ($1) ON CONFLICT DO NOTHING';

CREATE FUNCTION weir.uncoalesce_table(relation regclass) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'DELETE FROM weir.coalesced_table AS t WHERE t.relation = $1';

CREATE FUNCTION weir.stat_coalesce(
    OUT relation regclass,
    OUT requests bigint,
    OUT "rows" bigint,
    OUT batches bigint,
    OUT folded bigint,
    OUT bytes bigint,
    OUT queued bigint,
    OUT queue_full bigint,
    OUT unwritten integer,
    OUT failed bigint,
    OUT declined bigint,
    OUT declined_by_reason jsonb,
    OUT not_executed bigint,
    OUT not_executed_by_reason jsonb,
    OUT flushed_by_reason jsonb,
    OUT batch_p50 integer,
    OUT batch_p95 integer,
    OUT batch_p99 integer,
    OUT batch_max integer,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_coalesce';

CREATE VIEW weir.stat_coalesce AS SELECT * FROM weir.stat_coalesce();

CREATE FUNCTION weir.coalesce_failures(
    OUT number bigint,
    OUT at timestamptz,
    OUT database oid,
    OUT schema_name text,
    OUT table_name text,
    OUT role regrole,
    OUT "rows" integer,
    OUT sqlstate text,
    OUT constraint_name text,
    OUT message text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_coalesce_failures';

CREATE VIEW weir.coalesce_failures AS
    SELECT number, at, d.datname AS database, schema_name, table_name, role, "rows", sqlstate, constraint_name, message
    FROM weir.coalesce_failures() LEFT JOIN pg_catalog.pg_database AS d ON d.oid = database;

CREATE FUNCTION weir.coalesce_explain(
    sql text,
    OUT relation regclass,
    OUT coalesced boolean,
    OUT reason text,
    OUT detail text)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_coalesce_explain';

CREATE FUNCTION weir.coalesce_flush(timeout interval DEFAULT '10 s') RETURNS boolean
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_coalesce_flush';

COMMENT ON TABLE weir.coalesced_table IS 'Tables whose small autocommit writes go through coalescing workers: see docs/coalescing.md. Changed by weir.coalesce_table() and weir.uncoalesce_table(); dumped by pg_dump.';
COMMENT ON COLUMN weir.coalesced_table.relation IS 'the table';
COMMENT ON COLUMN weir.coalesced_table.since IS 'when it opted in';

COMMENT ON VIEW weir.stat_coalesce IS 'Coalescing in this database since the last weir.reset(): a row per table that has opted in, or had.';
COMMENT ON COLUMN weir.stat_coalesce.relation IS 'the table; NULL: all those that found no room for counters of their own';
COMMENT ON COLUMN weir.stat_coalesce.requests IS 'statements that a worker committed';
COMMENT ON COLUMN weir.stat_coalesce."rows" IS 'rows that these wrote';
COMMENT ON COLUMN weir.stat_coalesce.batches IS 'transactions of workers that wrote to the table';
COMMENT ON COLUMN weir.stat_coalesce.folded IS 'updates that shared a row version with a later one of their batch';
COMMENT ON COLUMN weir.stat_coalesce.bytes IS 'bytes that clients handed to workers';
COMMENT ON COLUMN weir.stat_coalesce.queued IS 'statements that were answered when they were queued (weir.coalesce_ack)';
COMMENT ON COLUMN weir.stat_coalesce.queue_full IS 'statements that were to be, but found no room, or the table being changed: they were answered as ever';
COMMENT ON COLUMN weir.stat_coalesce.unwritten IS 'queued statements that are neither written nor failed now; weir.reset() leaves it';
COMMENT ON COLUMN weir.stat_coalesce.failed IS 'queued statements that could not be written: see weir.coalesce_failures';
COMMENT ON COLUMN weir.stat_coalesce.declined IS 'statements that were not sent to a worker';
COMMENT ON COLUMN weir.stat_coalesce.declined_by_reason IS 'these by reason: see docs/coalescing.md';
COMMENT ON COLUMN weir.stat_coalesce.not_executed IS 'statements that a worker gave back, and that ran in their own session then';
COMMENT ON COLUMN weir.stat_coalesce.not_executed_by_reason IS 'these by reason';
COMMENT ON COLUMN weir.stat_coalesce.flushed_by_reason IS 'batches by why they were begun: drained (nobody more came), complete (all who were at it were in it), full (weir.coalesce_max_batch), delay (weir.coalesce_max_delay, or half a slow commit), queued (nothing but what was answered already), alone (a queued statement that had failed among others), ending (the worker ends)';
COMMENT ON COLUMN weir.stat_coalesce.batch_p50 IS 'median number of statements in a batch';
COMMENT ON COLUMN weir.stat_coalesce.batch_p95 IS '95th percentile of that number';
COMMENT ON COLUMN weir.stat_coalesce.batch_p99 IS '99th percentile of that number';
COMMENT ON COLUMN weir.stat_coalesce.batch_max IS 'largest batch';
COMMENT ON COLUMN weir.stat_coalesce.wait_p50 IS 'median time from handing a statement to a worker until its answer';
COMMENT ON COLUMN weir.stat_coalesce.wait_p95 IS '95th percentile of that time';
COMMENT ON COLUMN weir.stat_coalesce.wait_p99 IS '99th percentile of that time';
COMMENT ON COLUMN weir.stat_coalesce.wait_max IS 'longest such time';

COMMENT ON VIEW weir.coalesce_failures IS 'The last 64 statements of this server that were answered when they were queued, and could not be written: newest first. Kept until the server ends.';
COMMENT ON COLUMN weir.coalesce_failures.number IS 'counts all failures since the server started';
COMMENT ON COLUMN weir.coalesce_failures.at IS 'when it failed';
COMMENT ON COLUMN weir.coalesce_failures.database IS 'its database; NULL: dropped since';
COMMENT ON COLUMN weir.coalesce_failures.schema_name IS 'schema of its table';
COMMENT ON COLUMN weir.coalesce_failures.table_name IS 'its table, or the OID of one that is gone';
COMMENT ON COLUMN weir.coalesce_failures.role IS 'whose statement it was';
COMMENT ON COLUMN weir.coalesce_failures."rows" IS 'rows that are not there';
COMMENT ON COLUMN weir.coalesce_failures.sqlstate IS 'SQLSTATE of the error';
COMMENT ON COLUMN weir.coalesce_failures.constraint_name IS 'the constraint, if it broke one';
COMMENT ON COLUMN weir.coalesce_failures.message IS 'the error; the server''s log has its detail, too';

COMMENT ON FUNCTION weir.coalesce_failures() IS 'What the view weir.coalesce_failures shows.';
COMMENT ON FUNCTION weir.coalesce_explain(text) IS 'Whether the statement, which may have parameters ($1), would go through a coalescing worker if this session executed it now, and if not, why: see docs/coalescing.md. It is planned, not executed. How large its values are is not known.';
COMMENT ON FUNCTION weir.coalesce_flush(interval) IS 'Waits until every statement that was queued in this database before has been written, or has failed. False: some are left after the timeout (0 to 1 day).';
COMMENT ON FUNCTION weir.coalesced_table_changed() IS 'The trigger on weir.coalesced_table: tells all sessions.';
COMMENT ON FUNCTION weir.coalesce_table(regclass) IS 'Opts a table in: small autocommit writes to it go through coalescing workers from the next transaction on. Superusers, unless granted.';
COMMENT ON FUNCTION weir.uncoalesce_table(regclass) IS 'Opts a table out. Superusers, unless granted.';
COMMENT ON FUNCTION weir.stat_coalesce() IS 'What the view weir.stat_coalesce shows.';

REVOKE ALL ON FUNCTION weir.coalesced_table_changed(), weir.coalesce_table(regclass), weir.uncoalesce_table(regclass),
    weir.stat_coalesce(), weir.coalesce_failures() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_coalesce(), weir.coalesce_failures() TO pg_monitor;
GRANT SELECT ON weir.coalesced_table, weir.stat_coalesce, weir.coalesce_failures TO pg_monitor;

CREATE FUNCTION weir.coalesce_memory(
    OUT bytes bigint,
    OUT in_use bigint,
    OUT allocated bigint,
    OUT refused bigint)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_coalesce_memory';

CREATE VIEW weir.coalesce_memory AS SELECT * FROM weir.coalesce_memory();

COMMENT ON VIEW weir.coalesce_memory IS 'Memory for coalesced statements of more than 8 kB, since the last weir.reset(), of all databases: one row.';
COMMENT ON COLUMN weir.coalesce_memory.bytes IS 'its size; 0: nobody has needed it yet, or there could be none: see the log';
COMMENT ON COLUMN weir.coalesce_memory.in_use IS 'statements and returned rows that are in it now';
COMMENT ON COLUMN weir.coalesce_memory.allocated IS 'statements and returned rows that were put there';
COMMENT ON COLUMN weir.coalesce_memory.refused IS 'those that found no room, and went the ordinary way';
COMMENT ON FUNCTION weir.coalesce_memory() IS 'What the view weir.coalesce_memory shows.';

REVOKE ALL ON FUNCTION weir.coalesce_memory() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.coalesce_memory() TO pg_monitor;
GRANT SELECT ON weir.coalesce_memory TO pg_monitor;

-- ---- units that are submitted ------------------------------------------------------------------------------------

CREATE TABLE weir.submitted_key (
    role regrole NOT NULL,
    key text COLLATE "C" NOT NULL,
    request bytea NOT NULL,
    "rows" bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (role, key));
CREATE INDEX submitted_key_at ON weir.submitted_key (at);

-- What units wrote is dumped, so what is remembered of them is. A role that was dropped has left a number, which no other server
-- could read back as its own.
SELECT pg_catalog.pg_extension_config_dump('weir.submitted_key',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid = role)');

-- Not STRICT: a key may be NULL, and NULL statements are an error.
CREATE FUNCTION weir.submit(sql text, params text[] DEFAULT '{}', key text DEFAULT NULL) RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_submit';

CREATE FUNCTION weir.stat_submit(
    OUT units bigint,
    OUT "rows" bigint,
    OUT batches bigint,
    OUT replayed bigint,
    OUT in_place bigint,
    OUT in_place_by_reason jsonb,
    OUT given_back bigint,
    OUT given_back_by_reason jsonb,
    OUT batch_p50 integer,
    OUT batch_p95 integer,
    OUT batch_p99 integer,
    OUT batch_max integer,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_submit';

CREATE VIEW weir.stat_submit AS SELECT * FROM weir.stat_submit();

COMMENT ON TABLE weir.submitted_key IS 'What is remembered of units that weir.submit() executed with a key, for weir.submit_key_retention. Dumped by pg_dump.';
COMMENT ON COLUMN weir.submitted_key.role IS 'whose unit it was: current_user';
COMMENT ON COLUMN weir.submitted_key.key IS 'the key';
COMMENT ON COLUMN weir.submitted_key.request IS 'SHA-256 of its statements and parameters';
COMMENT ON COLUMN weir.submitted_key."rows" IS 'the outcome: rows that it wrote';
COMMENT ON COLUMN weir.submitted_key.at IS 'when that was';

COMMENT ON VIEW weir.stat_submit IS 'Units of weir.submit() since the last weir.reset(), of all databases: one row.';
COMMENT ON COLUMN weir.stat_submit.units IS 'units that a worker committed';
COMMENT ON COLUMN weir.stat_submit."rows" IS 'rows that these wrote';
COMMENT ON COLUMN weir.stat_submit.batches IS 'transactions of workers';
COMMENT ON COLUMN weir.stat_submit.replayed IS 'units that were answered from their key, and not executed again';
COMMENT ON COLUMN weir.stat_submit.in_place IS 'units that were executed by their own session at once';
COMMENT ON COLUMN weir.stat_submit.in_place_by_reason IS 'these by reason: see docs/submit.md';
COMMENT ON COLUMN weir.stat_submit.given_back IS 'units that a worker gave back, and that were executed by their own session then';
COMMENT ON COLUMN weir.stat_submit.given_back_by_reason IS 'these by reason: see docs/submit.md';
COMMENT ON COLUMN weir.stat_submit.batch_p50 IS 'median number of units in a batch';
COMMENT ON COLUMN weir.stat_submit.batch_p95 IS '95th percentile of that number';
COMMENT ON COLUMN weir.stat_submit.batch_p99 IS '99th percentile of that number';
COMMENT ON COLUMN weir.stat_submit.batch_max IS 'largest batch';
COMMENT ON COLUMN weir.stat_submit.wait_p50 IS 'median time from handing a unit to a worker until its answer';
COMMENT ON COLUMN weir.stat_submit.wait_p95 IS '95th percentile of that time';
COMMENT ON COLUMN weir.stat_submit.wait_p99 IS '99th percentile of that time';
COMMENT ON COLUMN weir.stat_submit.wait_max IS 'longest such time';

COMMENT ON FUNCTION weir.submit(text, text[], text) IS 'Executes the statements as one unit, with the caller''s rights and settings, and returns the number of rows that they wrote. A call that is a transaction by itself shares its commit with others. The same key within weir.submit_key_retention returns the first outcome instead of executing again. Superusers, unless granted.';
COMMENT ON FUNCTION weir.stat_submit() IS 'What the view weir.stat_submit shows.';

REVOKE ALL ON FUNCTION weir.submit(text, text[], text), weir.stat_submit() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_submit() TO pg_monitor;
GRANT SELECT ON weir.stat_submit TO pg_monitor;
-- Who owns the database can dump it.
GRANT SELECT ON weir.submitted_key, weir.coalesced_table TO pg_database_owner;

-- ---- metrics ------------------------------------------------------------------------------------------------------

CREATE FUNCTION weir.metrics() RETURNS text
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_metrics';

COMMENT ON FUNCTION weir.metrics() IS 'Everything that pg_weir counts, of the whole server, in Prometheus''s text format: what /metrics answers on weir.http_port. See docs/monitoring.md.';

REVOKE ALL ON FUNCTION weir.metrics() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.metrics() TO pg_monitor;

-- ---- read your own writes ---------------------------------------------------------------------------------------

CREATE FUNCTION weir.last_commit_lsn() RETURNS pg_lsn
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'weir_last_commit_lsn';

CREATE FUNCTION weir.last_commit_token() RETURNS text
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'weir_last_commit_token';

CREATE FUNCTION weir.lsn_reached(lsn pg_lsn) RETURNS boolean
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_lsn_reached';

CREATE FUNCTION weir.lsn_reached(token text) RETURNS boolean
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_token_reached';

CREATE PROCEDURE weir.wait_for_lsn(lsn pg_lsn, timeout interval DEFAULT NULL)
LANGUAGE C
AS 'MODULE_PATHNAME', 'weir_wait_for_lsn';

CREATE PROCEDURE weir.wait_for_lsn(token text, timeout interval DEFAULT NULL)
LANGUAGE C
AS 'MODULE_PATHNAME', 'weir_wait_for_token';

CREATE FUNCTION weir.stat_replay_wait(
    OUT waiting integer,
    OUT waited bigint,
    OUT timed_out bigint,
    OUT too_late bigint,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval,
    OUT since timestamptz)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_replay_wait';

CREATE VIEW weir.stat_replay_wait AS SELECT * FROM weir.stat_replay_wait();

COMMENT ON VIEW weir.stat_replay_wait IS 'Waits on this standby until WAL is replayed (weir.min_lsn, weir.wait_for_lsn), since the last weir.reset(): see docs/read-your-writes.md.';
COMMENT ON COLUMN weir.stat_replay_wait.waiting IS 'sessions that wait now';
COMMENT ON COLUMN weir.stat_replay_wait.waited IS 'waits that ended; what was replayed already is not counted';
COMMENT ON COLUMN weir.stat_replay_wait.timed_out IS 'of these: with SQLSTATE 57014 after weir.lsn_wait_timeout, or the timeout given';
COMMENT ON COLUMN weir.stat_replay_wait.too_late IS 'refused with SQLSTATE 25001: the transaction had a snapshot or had run a query';
COMMENT ON COLUMN weir.stat_replay_wait.wait_p50 IS 'median wait';
COMMENT ON COLUMN weir.stat_replay_wait.wait_p95 IS '95th percentile of the waits';
COMMENT ON COLUMN weir.stat_replay_wait.wait_p99 IS '99th percentile of the waits';
COMMENT ON COLUMN weir.stat_replay_wait.wait_max IS 'longest wait';
COMMENT ON COLUMN weir.stat_replay_wait.since IS 'when counting began';

COMMENT ON FUNCTION weir.last_commit_lsn() IS 'The end of this session''s last commit record on the primary, coalesced writes included: what a standby must have replayed to show it. NULL: this session has written nothing. Ask in a transaction of its own, after the commit.';
COMMENT ON FUNCTION weir.last_commit_token() IS 'The same with the timeline (0/3000060@1), as weir.min_lsn takes it: then a write that a promotion lost is an error instead of a stale read.';
COMMENT ON FUNCTION weir.lsn_reached(pg_lsn) IS 'Whether WAL is replayed up to there; does not wait. On a primary: true, or an error if its WAL does not reach so far (SQLSTATE 55000).';
COMMENT ON FUNCTION weir.lsn_reached(text) IS 'The same for a token, LSN or LSN@timeline; an error if that is not part of this server''s history (SQLSTATE 55000).';
COMMENT ON PROCEDURE weir.wait_for_lsn(pg_lsn, interval) IS 'Waits until WAL is replayed up to there, without a snapshot. SQLSTATE 57014 after the timeout (NULL: weir.lsn_wait_timeout; 0: no wait), 25001 where the transaction has a snapshot or ran a query. NULL: returns at once.';
COMMENT ON PROCEDURE weir.wait_for_lsn(text, interval) IS 'The same for a token, LSN or LSN@timeline; an error if that is not part of this server''s history (SQLSTATE 55000).';
COMMENT ON FUNCTION weir.stat_replay_wait() IS 'What the view weir.stat_replay_wait shows.';

REVOKE ALL ON FUNCTION weir.stat_replay_wait() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_replay_wait() TO pg_monitor;
GRANT SELECT ON weir.stat_replay_wait TO pg_monitor;

-- ---- load shedding by query digest --------------------------------------------------------------------------------

CREATE FUNCTION weir.limit_query(
    queryid bigint,
    max_active integer,
    reason text DEFAULT NULL,
    ttl interval DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_limit_query';

CREATE FUNCTION weir.block_query(
    queryid bigint,
    reason text DEFAULT NULL,
    ttl interval DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_block_query';

CREATE FUNCTION weir.drop_query_rule(queryid bigint) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_drop_query_rule';

CREATE FUNCTION weir.query_rules(
    OUT queryid bigint,
    OUT action text,
    OUT max_active integer,
    OUT reason text,
    OUT created_at timestamptz,
    OUT expires_at timestamptz,
    OUT active integer,
    OUT hits bigint,
    OUT refused bigint,
    OUT last_refused_at timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_query_rules';

CREATE VIEW weir.query_rules AS SELECT * FROM weir.query_rules();

COMMENT ON VIEW weir.query_rules IS 'Queries that are limited or blocked on this server, and what came of it: see docs/query-rules.md.';
COMMENT ON COLUMN weir.query_rules.queryid IS 'the query, as in pg_stat_activity.query_id and pg_stat_statements.queryid';
COMMENT ON COLUMN weir.query_rules.action IS 'limit or block';
COMMENT ON COLUMN weir.query_rules.max_active IS 'executions that may run at once; NULL: blocked';
COMMENT ON COLUMN weir.query_rules.reason IS 'what refused clients are told; NULL: none given';
COMMENT ON COLUMN weir.query_rules.created_at IS 'when the rule was made, or last replaced';
COMMENT ON COLUMN weir.query_rules.expires_at IS 'not in force from then on; NULL: until it is dropped';
COMMENT ON COLUMN weir.query_rules.active IS 'executions now running that the limit let in; those that began before the rule are not counted';
COMMENT ON COLUMN weir.query_rules.hits IS 'executions judged since the rule was made or the server started';
COMMENT ON COLUMN weir.query_rules.refused IS 'of these: refused (SQLSTATE 53300); in observe mode, would have been';
COMMENT ON COLUMN weir.query_rules.last_refused_at IS 'when that last happened; NULL: never';

COMMENT ON FUNCTION weir.limit_query(bigint, integer, text, interval) IS 'Lets at most max_active executions of the query run at once on this server, from now on and for ttl; refuses more with SQLSTATE 53300. Replaces the query''s rule if it has one. Not undone by ROLLBACK; survives a restart. Superusers, unless granted.';
COMMENT ON FUNCTION weir.block_query(bigint, text, interval) IS 'Refuses every execution of the query on this server with SQLSTATE 53300, from now on and for ttl. Replaces the query''s rule if it has one. Not undone by ROLLBACK; survives a restart. Superusers, unless granted.';
COMMENT ON FUNCTION weir.drop_query_rule(bigint) IS 'Drops the query''s rule; false: it had none. Not undone by ROLLBACK. Superusers, unless granted.';
COMMENT ON FUNCTION weir.query_rules() IS 'What the view weir.query_rules shows.';

REVOKE ALL ON FUNCTION weir.limit_query(bigint, integer, text, interval), weir.block_query(bigint, text, interval),
    weir.drop_query_rule(bigint), weir.query_rules() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.query_rules() TO pg_monitor;
GRANT SELECT ON weir.query_rules TO pg_monitor;

-- ---- replicas ---------------------------------------------------------------------------------------------------

CREATE FUNCTION weir.stat_replica(
    OUT kind text,
    OUT application_name text,
    OUT region text,
    OUT node text,
    OUT address text,
    OUT pid integer,
    OUT state text,
    OUT since timestamptz,
    OUT sync_priority integer,
    OUT counts boolean,
    OUT sent_lsn pg_lsn,
    OUT write_lsn pg_lsn,
    OUT flush_lsn pg_lsn,
    OUT replay_lsn pg_lsn,
    OUT write_lag_bytes bigint,
    OUT flush_lag_bytes bigint,
    OUT replay_lag_bytes bigint,
    OUT write_lag interval,
    OUT flush_lag interval,
    OUT replay_lag interval,
    OUT lag_p50_1m interval,
    OUT lag_p95_1m interval,
    OUT lag_p99_1m interval,
    OUT lag_max_1m interval,
    OUT lag_p50_5m interval,
    OUT lag_p95_5m interval,
    OUT lag_p99_5m interval,
    OUT lag_max_5m interval,
    OUT lag_p50_1h interval,
    OUT lag_p95_1h interval,
    OUT lag_p99_1h interval,
    OUT lag_max_1h interval,
    OUT replay_rate bigint,
    OUT wal_rate bigint,
    OUT catch_up interval,
    OUT reply_at timestamptz,
    OUT clock_skew interval,
    OUT sampled_at timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_replica';

CREATE FUNCTION weir.replica_lag_history(
    OUT at timestamptz,
    OUT kind text,
    OUT application_name text,
    OUT replay_lag interval,
    OUT replay_lag_bytes bigint,
    OUT replay_rate bigint)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_replica_lag_history';

CREATE VIEW weir.stat_replica AS SELECT * FROM weir.stat_replica();
CREATE VIEW weir.replica_lag_history AS SELECT * FROM weir.replica_lag_history();

COMMENT ON VIEW weir.stat_replica IS 'Replication as it is now: a row per standby of this server, also those lost in the last 24 hours; on a standby also its own.';
COMMENT ON COLUMN weir.stat_replica.kind IS 'standby: one that gets WAL from this server; self: this server, if it is a standby';
COMMENT ON COLUMN weir.stat_replica.application_name IS 'as the standby gives it (primary_conninfo, else its cluster_name); of self: cluster_name';
COMMENT ON COLUMN weir.stat_replica.region IS 'what stands before the "/" in application_name; of self: weir.region, if that is set; NULL: none';
COMMENT ON COLUMN weir.stat_replica.node IS 'what stands after it';
COMMENT ON COLUMN weir.stat_replica.address IS 'address of the standby, NULL: a Unix socket; of self: host that it gets WAL from';
COMMENT ON COLUMN weir.stat_replica.pid IS 'its walsender here; NULL: disconnected, or self';
COMMENT ON COLUMN weir.stat_replica.state IS 'streaming, catchup (has not caught up since it connected), archive, paused, disconnected, unknown';
COMMENT ON COLUMN weir.stat_replica.since IS 'when it connected or was lost; of self: when this server started or was promoted';
COMMENT ON COLUMN weir.stat_replica.sync_priority IS 'as in pg_stat_replication; 0: asynchronous';
COMMENT ON COLUMN weir.stat_replica.counts IS 'whether it counts for the throttle and weir.check_throttle()';
COMMENT ON COLUMN weir.stat_replica.sent_lsn IS 'sent to it; of self: end of WAL on the sender, as last heard';
COMMENT ON COLUMN weir.stat_replica.write_lsn IS 'written by it';
COMMENT ON COLUMN weir.stat_replica.flush_lsn IS 'flushed by it';
COMMENT ON COLUMN weir.stat_replica.replay_lsn IS 'replayed by it; NULL: it replays nothing, as pg_receivewal';
COMMENT ON COLUMN weir.stat_replica.write_lag_bytes IS 'WAL that it has not written';
COMMENT ON COLUMN weir.stat_replica.flush_lag_bytes IS 'WAL that it has not flushed';
COMMENT ON COLUMN weir.stat_replica.replay_lag_bytes IS 'WAL that it has not replayed; of what replays nothing, not flushed or written';
COMMENT ON COLUMN weir.stat_replica.write_lag IS 'age of the oldest WAL that it has not written; 0: it has all';
COMMENT ON COLUMN weir.stat_replica.flush_lag IS 'age of the oldest WAL that it has not flushed';
COMMENT ON COLUMN weir.stat_replica.replay_lag IS 'age of the oldest WAL that it has not replayed; grows while it is paused, stuck or disconnected; never NULL';
COMMENT ON COLUMN weir.stat_replica.lag_p50_1m IS 'median of replay_lag over the last minute; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p95_1m IS '95th percentile of replay_lag over the last minute; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p99_1m IS '99th percentile of replay_lag over the last minute; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_max_1m IS 'largest of replay_lag over the last minute';
COMMENT ON COLUMN weir.stat_replica.lag_p50_5m IS 'median of replay_lag over the last 5 minutes; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p95_5m IS '95th percentile of replay_lag over the last 5 minutes; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p99_5m IS '99th percentile of replay_lag over the last 5 minutes; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_max_5m IS 'largest of replay_lag over the last 5 minutes';
COMMENT ON COLUMN weir.stat_replica.lag_p50_1h IS 'median of replay_lag over the last hour; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p95_1h IS '95th percentile of replay_lag over the last hour; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_p99_1h IS '99th percentile of replay_lag over the last hour; error at most 12.5 %';
COMMENT ON COLUMN weir.stat_replica.lag_max_1h IS 'largest of replay_lag over the last hour';
COMMENT ON COLUMN weir.stat_replica.replay_rate IS 'bytes of WAL a second that it replays, mean of about 3 s';
COMMENT ON COLUMN weir.stat_replica.wal_rate IS 'bytes of WAL a second that this server makes, or on a standby receives';
COMMENT ON COLUMN weir.stat_replica.catch_up IS 'until it has caught up at these rates; NULL: never';
COMMENT ON COLUMN weir.stat_replica.reply_at IS 'its last message, by its own clock; of self: when the sender was last heard';
COMMENT ON COLUMN weir.stat_replica.clock_skew IS 'of self: this clock minus the senders and the shortest transfer seen; NULL: not known, or not self';
COMMENT ON COLUMN weir.stat_replica.sampled_at IS 'when all this was so';

COMMENT ON VIEW weir.replica_lag_history IS 'Lag of each standby, a row a second; the last 8192 rows of all standbys together.';
COMMENT ON COLUMN weir.replica_lag_history.at IS 'when';
COMMENT ON COLUMN weir.replica_lag_history.kind IS 'standby or self, as in weir.stat_replica';
COMMENT ON COLUMN weir.replica_lag_history.application_name IS 'of the standby';
COMMENT ON COLUMN weir.replica_lag_history.replay_lag IS 'then';
COMMENT ON COLUMN weir.replica_lag_history.replay_lag_bytes IS 'then';
COMMENT ON COLUMN weir.replica_lag_history.replay_rate IS 'bytes of WAL a second that it replayed';

COMMENT ON FUNCTION weir.stat_replica() IS 'What the view weir.stat_replica shows. Reads shared memory only.';
COMMENT ON FUNCTION weir.replica_lag_history() IS 'What the view weir.replica_lag_history shows.';

REVOKE ALL ON FUNCTION weir.stat_replica(), weir.replica_lag_history() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_replica(), weir.replica_lag_history() TO pg_monitor;
GRANT SELECT ON weir.stat_replica, weir.replica_lag_history TO pg_monitor;

-- ---- routing ----------------------------------------------------------------------------------------------------

CREATE TYPE weir.read_target AS (
    application_name text,
    region text,
    node text,
    address text,
    weight integer,
    replay_lag interval,
    replay_lag_bytes bigint,
    replay_lsn pg_lsn,
    state text);

CREATE FUNCTION weir.read_targets(max_lag interval DEFAULT NULL, region text DEFAULT NULL)
RETURNS SETOF weir.read_target
LANGUAGE C VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_read_targets';

CREATE FUNCTION weir.stat_quarantine(
    OUT state text,
    OUT refusing boolean,
    OUT since timestamptz,
    OUT replay_lag interval,
    OUT quarantine_lag interval,
    OUT hold_left interval,
    OUT region text,
    OUT changes bigint,
    OUT refused bigint,
    OUT sampled_at timestamptz)
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_quarantine';

CREATE VIEW weir.stat_quarantine AS SELECT * FROM weir.stat_quarantine();

COMMENT ON TYPE weir.read_target IS 'A standby that reads may go to now: a row of weir.read_targets().';
COMMENT ON COLUMN weir.read_target.application_name IS 'as the standby gives it';
COMMENT ON COLUMN weir.read_target.region IS 'what stands before the "/" in application_name; NULL: no "/"';
COMMENT ON COLUMN weir.read_target.node IS 'what stands after it';
COMMENT ON COLUMN weir.read_target.address IS 'address that its replication connection comes from; NULL: a Unix socket';
COMMENT ON COLUMN weir.read_target.weight IS '1 to 100: the share of max_lag that is left; without a bound 100 / (1 + lag in seconds)';
COMMENT ON COLUMN weir.read_target.replay_lag IS 'age of the oldest WAL that it has not replayed';
COMMENT ON COLUMN weir.read_target.replay_lag_bytes IS 'WAL that it has not replayed';
COMMENT ON COLUMN weir.read_target.replay_lsn IS 'replayed by it, at least: what weir.last_commit_lsn() gave can be compared with it';
COMMENT ON COLUMN weir.read_target.state IS 'streaming or catchup, as in weir.stat_replica';

COMMENT ON FUNCTION weir.read_targets(interval, text) IS 'Standbys that reads may go to now, the least behind first: connected, listed in weir.lag_replicas, not in quarantine, within max_lag (NULL: weir.quarantine_lag, or no bound if that is 0), in the region (NULL: any; empty: those without one). On a primary only; reads shared memory only.';
COMMENT ON FUNCTION weir.stat_quarantine() IS 'What the view weir.stat_quarantine shows.';

COMMENT ON VIEW weir.stat_quarantine IS 'One row: whether this standby refuses new connections because it is too far behind.';
COMMENT ON COLUMN weir.stat_quarantine.state IS 'primary, off (weir.quarantine_lag = 0), open, quarantined';
COMMENT ON COLUMN weir.stat_quarantine.refusing IS 'whether new ordinary connections are refused now: quarantined, weir.mode = enforce, and lag is being sampled';
COMMENT ON COLUMN weir.stat_quarantine.since IS 'when it was last quarantined or let go; NULL: not since the server started';
COMMENT ON COLUMN weir.stat_quarantine.replay_lag IS 'of this standby; NULL on a primary';
COMMENT ON COLUMN weir.stat_quarantine.quarantine_lag IS 'the setting that is in force; NULL: off';
COMMENT ON COLUMN weir.stat_quarantine.hold_left IS 'earliest end, if lag stays below half of quarantine_lag; NULL: not quarantined';
COMMENT ON COLUMN weir.stat_quarantine.region IS 'weir.region';
COMMENT ON COLUMN weir.stat_quarantine.changes IS 'times that it was quarantined or let go, since weir.reset()';
COMMENT ON COLUMN weir.stat_quarantine.refused IS 'connections refused since then; with weir.mode = observe, those that would have been';
COMMENT ON COLUMN weir.stat_quarantine.sampled_at IS 'when lag was last sampled';

REVOKE ALL ON FUNCTION weir.read_targets(interval, text), weir.stat_quarantine() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.read_targets(interval, text), weir.stat_quarantine() TO pg_monitor;
GRANT SELECT ON weir.stat_quarantine TO pg_monitor;

-- ---- flow control -----------------------------------------------------------------------------------------------

CREATE FUNCTION weir.stat_throttle(
    OUT mode text,
    OUT state text,
    OUT max_lag interval,
    OUT max_lag_bytes bigint,
    OUT standbys integer,
    OUT standby text,
    OUT lag interval,
    OUT delay interval,
    OUT lag_bytes bigint,
    OUT capacity bigint,
    OUT rate bigint,
    OUT batch_rate bigint,
    OUT wal_rate bigint,
    OUT others_rate bigint,
    OUT engagements bigint,
    OUT batch_engagements bigint,
    OUT waiting integer,
    OUT waits bigint,
    OUT batch_waits bigint,
    OUT bulk_waits bigint,
    OUT expired bigint,
    OUT wait_total interval,
    OUT wait_p50 interval,
    OUT wait_p95 interval,
    OUT wait_p99 interval,
    OUT wait_max interval,
    OUT checks_allowed bigint,
    OUT checks_denied bigint,
    OUT sampled_at timestamptz,
    OUT since timestamptz)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_stat_throttle';

CREATE FUNCTION weir.throttle_standby(
    OUT application_name text,
    OUT standing text,
    OUT lag interval,
    OUT delay interval,
    OUT lag_bytes bigint,
    OUT capacity bigint,
    OUT pressure real,
    OUT limiting boolean,
    OUT at_floor boolean)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_throttle_standby';

CREATE FUNCTION weir.throttle_rules(
    OUT app text,
    OUT exempt boolean,
    OUT ratio double precision,
    OUT expires_at timestamptz,
    OUT checks bigint,
    OUT denied bigint)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_throttle_rules';

CREATE FUNCTION weir.check_throttle(
    app text,
    OUT allowed boolean,
    OUT code text,
    OUT value double precision,
    OUT threshold double precision,
    OUT unit text,
    OUT retry_after interval)
RETURNS record
LANGUAGE C VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'weir_check_throttle';

CREATE FUNCTION weir.throttle_app(app text, ratio double precision DEFAULT 1, ttl interval DEFAULT '1 hour') RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_throttle_app';

CREATE FUNCTION weir.exempt_app(app text, ttl interval DEFAULT '1 hour') RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_exempt_app';

CREATE FUNCTION weir.drop_throttle_rule(app text) RETURNS boolean
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'weir_drop_throttle_rule';

CREATE VIEW weir.stat_throttle AS SELECT * FROM weir.stat_throttle();
CREATE VIEW weir.throttle_standby AS SELECT * FROM weir.throttle_standby();
CREATE VIEW weir.throttle_rules AS SELECT * FROM weir.throttle_rules();

COMMENT ON VIEW weir.stat_throttle IS 'Flow control of writers by replica lag: one row. Rates are bytes of WAL a second.';
COMMENT ON COLUMN weir.stat_throttle.mode IS 'weir.mode as it is in force';
COMMENT ON COLUMN weir.stat_throttle.state IS 'off (no target, or not a primary), idle, batch (only classes of low weight are slowed down), engaged, stale (nobody samples: nobody is slowed down)';
COMMENT ON COLUMN weir.stat_throttle.max_lag IS 'weir.max_replica_lag; NULL: none';
COMMENT ON COLUMN weir.stat_throttle.max_lag_bytes IS 'weir.max_replica_lag_bytes; NULL: none';
COMMENT ON COLUMN weir.stat_throttle.standbys IS 'standbys that count';
COMMENT ON COLUMN weir.stat_throttle.standby IS 'application_name of the one that the quorum is about: the weir.lag_quorum-th worst; NULL: none';
COMMENT ON COLUMN weir.stat_throttle.lag IS 'its replay lag: age of the oldest WAL that it has not replayed';
COMMENT ON COLUMN weir.stat_throttle.delay IS 'how late it will replay what is written now: lag_bytes / capacity. What is steered by';
COMMENT ON COLUMN weir.stat_throttle.lag_bytes IS 'WAL that it has not replayed';
COMMENT ON COLUMN weir.stat_throttle.capacity IS 'bytes of WAL a second that it replays while it has a backlog';
COMMENT ON COLUMN weir.stat_throttle.rate IS 'bytes of WAL a second that writers may write; NULL: no limit';
COMMENT ON COLUMN weir.stat_throttle.batch_rate IS 'the same of classes of low weight';
COMMENT ON COLUMN weir.stat_throttle.wal_rate IS 'bytes of WAL a second that this server writes';
COMMENT ON COLUMN weir.stat_throttle.others_rate IS 'of that, what is not ruled by the throttle; NULL: not engaged';
COMMENT ON COLUMN weir.stat_throttle.engagements IS 'how often writers began to be slowed down, since the server started';
COMMENT ON COLUMN weir.stat_throttle.batch_engagements IS 'the same of classes of low weight';
COMMENT ON COLUMN weir.stat_throttle.waiting IS 'writers and workers that wait now';
COMMENT ON COLUMN weir.stat_throttle.waits IS 'transactions that had to wait, or in observe mode would have had to';
COMMENT ON COLUMN weir.stat_throttle.batch_waits IS 'the same of classes of low weight';
COMMENT ON COLUMN weir.stat_throttle.bulk_waits IS 'waits between the rows of long statements, and rests of autovacuum that were prolonged';
COMMENT ON COLUMN weir.stat_throttle.expired IS 'transactions that wrote all the same after weir.throttle_max_wait';
COMMENT ON COLUMN weir.stat_throttle.wait_total IS 'all waits together';
COMMENT ON COLUMN weir.stat_throttle.wait_p50 IS 'half of the transactions that waited did so for at most this long';
COMMENT ON COLUMN weir.stat_throttle.wait_p95 IS '95 % of them';
COMMENT ON COLUMN weir.stat_throttle.wait_p99 IS '99 % of them';
COMMENT ON COLUMN weir.stat_throttle.wait_max IS 'the longest';
COMMENT ON COLUMN weir.stat_throttle.checks_allowed IS 'answers of weir.check_throttle(): yes';
COMMENT ON COLUMN weir.stat_throttle.checks_denied IS 'answers of weir.check_throttle(): no';
COMMENT ON COLUMN weir.stat_throttle.sampled_at IS 'when lag was last sampled';
COMMENT ON COLUMN weir.stat_throttle.since IS 'last weir.reset()';

COMMENT ON VIEW weir.throttle_standby IS 'The standbys that weir.lag_replicas lists, and whether each counts for the throttle.';
COMMENT ON COLUMN weir.throttle_standby.application_name IS 'of the standby';
COMMENT ON COLUMN weir.throttle_standby.standing IS 'counts; or why it does not: disconnected, stuck, hopeless, not helped, returning. See docs/flow-control.md';
COMMENT ON COLUMN weir.throttle_standby.lag IS 'its replay lag';
COMMENT ON COLUMN weir.throttle_standby.delay IS 'how late it will replay what is written now';
COMMENT ON COLUMN weir.throttle_standby.lag_bytes IS 'WAL that it has not replayed';
COMMENT ON COLUMN weir.throttle_standby.capacity IS 'bytes of WAL a second that it replays while it has a backlog';
COMMENT ON COLUMN weir.throttle_standby.pressure IS 'share of the target that is used up: writers are slowed down from 0.5; at 0.75, or as low as 0.5 if its rate fell lately, they write what it replays, beyond that less';
COMMENT ON COLUMN weir.throttle_standby.limiting IS 'writers are slowed down for its sake';
COMMENT ON COLUMN weir.throttle_standby.at_floor IS 'and may write no more than the floor';

COMMENT ON VIEW weir.throttle_rules IS 'Rules of weir.check_throttle() that are in force. They survive a restart; their counters do not.';
COMMENT ON COLUMN weir.throttle_rules.app IS 'pattern of the names of applications: * and ? as in weir.class_map';
COMMENT ON COLUMN weir.throttle_rules.exempt IS 'they are always allowed';
COMMENT ON COLUMN weir.throttle_rules.ratio IS 'else: share of their checks that is denied, whatever the lag';
COMMENT ON COLUMN weir.throttle_rules.expires_at IS 'when the rule ends';
COMMENT ON COLUMN weir.throttle_rules.checks IS 'checks that it decided';
COMMENT ON COLUMN weir.throttle_rules.denied IS 'of these, denied';

COMMENT ON FUNCTION weir.stat_throttle() IS 'What the view weir.stat_throttle shows. Reads shared memory only.';
COMMENT ON FUNCTION weir.throttle_standby() IS 'What the view weir.throttle_standby shows.';
COMMENT ON FUNCTION weir.throttle_rules() IS 'What the view weir.throttle_rules shows.';
COMMENT ON FUNCTION weir.check_throttle(text) IS 'May a job of this name write now? For backfills and migrations, before each chunk. code: ok, exempt; lagging, denied, unknown, stale, standby. value and threshold in unit: s or bytes. retry_after: NULL if allowed.';
COMMENT ON FUNCTION weir.throttle_app(text, double precision, interval) IS 'Denies this share (0..1) of the checks of jobs whose name matches the pattern, for ttl. Not undone by ROLLBACK; survives a restart.';
COMMENT ON FUNCTION weir.exempt_app(text, interval) IS 'Allows jobs whose name matches the pattern whatever the lag is, for ttl. Not undone by ROLLBACK; survives a restart.';
COMMENT ON FUNCTION weir.drop_throttle_rule(text) IS 'Ends the rule of this pattern. False: there was none.';

REVOKE ALL ON FUNCTION weir.stat_throttle(), weir.throttle_standby(), weir.throttle_rules(),
    weir.throttle_app(text, double precision, interval), weir.exempt_app(text, interval), weir.drop_throttle_rule(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION weir.stat_throttle(), weir.throttle_standby(), weir.throttle_rules() TO pg_monitor;
GRANT SELECT ON weir.stat_throttle, weir.throttle_standby, weir.throttle_rules TO pg_monitor;
