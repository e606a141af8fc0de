-- Tables that opt in: which can, who may, and what becomes of the entry when the table is renamed or dropped.

CREATE TABLE counters (id int PRIMARY KEY, v int NOT NULL DEFAULT 0);
CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
SELECT weir.coalesce_table('counters');
SELECT weir.coalesce_table('counters');
SELECT weir.coalesce_table('events');
SELECT relation, since <= clock_timestamp() AS since FROM weir.coalesced_table ORDER BY relation::text;

-- the entry follows the table
ALTER TABLE counters RENAME TO tallies;
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
CREATE SCHEMA elsewhere;
ALTER TABLE tallies SET SCHEMA elsewhere;
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
SELECT weir.uncoalesce_table('events');
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
SELECT weir.coalesce_table('events');
BEGIN;
DROP TABLE events;
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
ROLLBACK;
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
DROP SCHEMA elsewhere CASCADE;
SELECT relation FROM weir.coalesced_table ORDER BY relation::text;
DROP TABLE events;
SELECT count(*) FROM weir.coalesced_table;

-- a role that may drop its table needs no rights here
CREATE ROLE regress_weir_owner;
CREATE SCHEMA AUTHORIZATION regress_weir_owner;
SET ROLE regress_weir_owner;
CREATE TABLE regress_weir_owner.mine (id int PRIMARY KEY);
SELECT weir.coalesce_table('regress_weir_owner.mine');
INSERT INTO weir.coalesced_table VALUES ('regress_weir_owner.mine');
RESET ROLE;
GRANT EXECUTE ON FUNCTION weir.coalesce_table(regclass) TO regress_weir_owner;
SET ROLE regress_weir_owner;
SELECT weir.coalesce_table('regress_weir_owner.mine');
DROP TABLE regress_weir_owner.mine;
RESET ROLE;
SELECT count(*) FROM weir.coalesced_table;
REVOKE EXECUTE ON FUNCTION weir.coalesce_table(regclass) FROM regress_weir_owner;
DROP SCHEMA regress_weir_owner;
DROP ROLE regress_weir_owner;

-- which cannot; a partitioned one can, as a whole
CREATE VIEW a_view AS SELECT 1 AS one;
CREATE TEMP TABLE a_temporary (id int);
CREATE UNLOGGED TABLE an_unlogged (id int);
CREATE TABLE a_partitioned (id int) PARTITION BY LIST (id);
CREATE TABLE a_partition PARTITION OF a_partitioned DEFAULT;
SELECT weir.coalesce_table('a_view');
SELECT weir.coalesce_table('a_temporary');
SELECT weir.coalesce_table('an_unlogged');
SELECT weir.coalesce_table('a_partition');
SELECT weir.coalesce_table('pg_class');
SELECT weir.coalesce_table('nowhere');
SELECT weir.coalesce_table(NULL);
SELECT weir.coalesce_table('a_partitioned');
SELECT weir.uncoalesce_table('a_partitioned');
UPDATE weir.coalesced_table SET relation = 0;
INSERT INTO weir.coalesced_table VALUES (0);
SELECT count(*) FROM weir.coalesced_table;
SELECT weir.coalesced_table_changed();

-- with nothing opted in, and without the mode, nothing changes
SELECT * FROM weir.stat_coalesce;
TRUNCATE weir.coalesced_table;

-- what pg_dump keeps: this
SELECT extconfig::regclass[], extcondition FROM pg_extension WHERE extname = 'pg_weir';

DROP VIEW a_view;
DROP TABLE a_temporary, an_unlogged, a_partitioned;
