-- What is counted, in one session: which statements take a slot, in each mode, and without the extension's objects.
-- That others wait is test/t's.
CREATE ROLE regress_weir_app;
CREATE TABLE regress_weir_t (i int);
INSERT INTO regress_weir_t VALUES (1);
GRANT ALL ON regress_weir_t TO regress_weir_app;
CREATE PROCEDURE regress_weir_commits() LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO regress_weir_t VALUES (2);
    COMMIT;
    INSERT INTO regress_weir_t VALUES (3);
    ROLLBACK;
    PERFORM 1;
END $$;
CREATE FUNCTION regress_weir_nested() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE TEMP TABLE regress_weir_temp AS SELECT 1 AS one';
    EXECUTE 'DROP TABLE regress_weir_temp';
    RETURN (SELECT count(*) FROM regress_weir_t);
END $$;

-- Returns when the launcher has taken over a reload, which it does for everybody.
CREATE PROCEDURE regress_weir_wait_for(wanted text) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..3000 LOOP
        IF (SELECT concat_ws(' ', mode, coalesce(limit_now, 0)) FROM weir.stat_admission) = wanted THEN
            RETURN;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RAISE EXCEPTION 'not in force: %', wanted;
END $$;

-- Since the last weir.reset(); the superuser's statements are counted apart.
CREATE VIEW regress_weir_counted AS
    SELECT mode, limit_now, active, lent, waiting, admitted, queued, refused, wait_max FROM weir.stat_admission;

-- ---- enforce
ALTER SYSTEM SET weir.mode = 'enforce';
ALTER SYSTEM SET weir.max_active = 1;
SELECT pg_reload_conf();
CALL regress_weir_wait_for('enforce 1');

-- one slot each
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
INSERT INTO regress_weir_t VALUES (4);
SELECT 1 \; SELECT 2 \; SELECT 3;
EXPLAIN (COSTS off) SELECT 1;
COPY (SELECT 1) TO STDOUT;
SELECT count(*) > 0 FROM regress_weir_nested();
SELECT 1 / (count(*) - count(*)) FROM regress_weir_t;
CALL regress_weir_commits();
DO $$ BEGIN PERFORM 1; PERFORM 2; END $$;
CREATE TEMP TABLE regress_weir_made AS SELECT 1;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;

-- one for a whole transaction
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
BEGIN;
SELECT count(*) > 0 FROM regress_weir_t;
SAVEPOINT a;
SELECT 1/0;
ROLLBACK TO a;
DECLARE c CURSOR FOR SELECT 1;
FETCH c;
FETCH c;
UPDATE regress_weir_t SET i = 5 WHERE i = 4;
COMMIT;
BEGIN;
ROLLBACK;
START TRANSACTION READ ONLY;
COMMIT AND CHAIN;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;

-- none
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SET work_mem = '1MB';
SHOW work_mem;
RESET work_mem;
PREPARE p AS SELECT 1;
DEALLOCATE p;
LISTEN regress_weir;
NOTIFY regress_weir_other;
UNLISTEN *;
SELEC;
SELECT * FROM regress_weir_missing;
COMMIT;
ROLLBACK;
;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;

-- a transaction shows itself; a superuser's takes no slot
SET SESSION AUTHORIZATION regress_weir_app;
BEGIN;
RESET SESSION AUTHORIZATION;
SELECT class, state, position, pid = pg_backend_pid() AS mine, role = session_user AS me FROM weir.activity;
SELECT active FROM weir.stat_admission;
COMMIT;
SELECT weir.reset();
SELECT 1;
BEGIN;
SELECT class, state FROM weir.activity;
COMMIT;
SELECT admitted, bypassed FROM weir.stat_admission;

-- a class of its own, by name and by map
ALTER SYSTEM SET weir.classes = 'batch: weight=3 reserved=1 max_active=7 queue_size=9 queue_timeout=5min; other:';
ALTER SYSTEM SET weir.class_map = 'role=regress_weir_app, application_name=*night* => batch';
ALTER SYSTEM SET weir.max_active = 5;
SELECT pg_reload_conf();
CALL regress_weir_wait_for('enforce 5');
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
SET application_name = 'tonight';
SELECT 1;
SELECT 1;
RESET SESSION AUTHORIZATION;
SET weir.class = 'other';
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
RESET SESSION AUTHORIZATION;
RESET weir.class;
RESET application_name;
SELECT class, weight, reserved, max_active, queue_size, queue_timeout, active, waiting, admitted FROM weir.stat_class ORDER BY class COLLATE "C";
ALTER SYSTEM RESET weir.classes;
ALTER SYSTEM RESET weir.class_map;

-- no limit
ALTER SYSTEM SET weir.max_active = 0;
SELECT pg_reload_conf();
CALL regress_weir_wait_for('enforce 0');
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;
SELECT adaptive, limit_reason FROM weir.stat_admission;
SELECT class FROM weir.stat_class;

-- ---- observe
ALTER SYSTEM SET weir.mode = 'observe';
ALTER SYSTEM SET weir.max_active = 1;
SELECT pg_reload_conf();
CALL regress_weir_wait_for('observe 1');
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
BEGIN;
SELECT 2;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;

-- ---- off
ALTER SYSTEM SET weir.mode = 'off';
SELECT pg_reload_conf();
CALL regress_weir_wait_for('off 1');
SELECT weir.reset();
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
BEGIN;
SELECT 2;
COMMIT;
RESET SESSION AUTHORIZATION;
SELECT * FROM regress_weir_counted;
SELECT bypassed FROM weir.stat_admission;

-- ---- the gate does not need the extension's objects
ALTER SYSTEM SET weir.mode = 'enforce';
SELECT pg_reload_conf();
CALL regress_weir_wait_for('enforce 1');
SELECT weir.reset();
DROP VIEW regress_weir_counted;
DROP EXTENSION pg_weir;
SELECT to_regnamespace('weir');
SHOW weir.mode;
SET SESSION AUTHORIZATION regress_weir_app;
SELECT 1;
BEGIN;
SELECT 2;
COMMIT;
RESET SESSION AUTHORIZATION;
CREATE EXTENSION pg_weir;
SELECT mode, limit_now, active, waiting, admitted FROM weir.stat_admission;

-- ---- as it was
ALTER SYSTEM RESET weir.mode;
ALTER SYSTEM RESET weir.max_active;
SELECT pg_reload_conf();
DO $$
BEGIN
    FOR i IN 1..3000 LOOP
        EXIT WHEN (SELECT mode = 'observe' AND adaptive FROM weir.stat_admission);
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT mode, adaptive FROM weir.stat_admission;
SELECT name, setting FROM pg_file_settings WHERE name LIKE 'weir.%';
DROP TABLE regress_weir_t, regress_weir_made;
DROP PROCEDURE regress_weir_commits, regress_weir_wait_for;
DROP FUNCTION regress_weir_nested;
DROP ROLE regress_weir_app;
