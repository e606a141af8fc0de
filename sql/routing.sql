-- Where reads may go, and quarantine, on a primary without standbys: what is said, to whom, and what is refused. What happens
-- with standbys is test/t/350_routing.pl's.

SELECT * FROM weir.read_targets();
SELECT * FROM weir.read_targets(NULL, NULL);
SELECT * FROM weir.read_targets('0', '');
SELECT * FROM weir.read_targets('100000 years', 'eu');
SELECT * FROM weir.read_targets(region => 'eu');
SELECT * FROM weir.read_targets('-1 us');
SELECT * FROM weir.read_targets('-1 month');
SELECT * FROM weir.read_targets('soon');
SELECT state, refusing, since, replay_lag, quarantine_lag, hold_left, region, changes, refused, sampled_at > now() - interval '5 s' AS sampled
FROM weir.stat_quarantine;

-- a quarantine is a standby's: the setting changes nothing here
ALTER SYSTEM SET weir.quarantine_lag = '1s';
ALTER SYSTEM SET weir.region = 'eu';
SELECT pg_reload_conf();
DO $$
BEGIN
    FOR i IN 1 .. 500 LOOP
        EXIT WHEN (SELECT quarantine_lag IS NOT NULL FROM weir.stat_quarantine);
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$;
SELECT state, refusing, since, replay_lag, quarantine_lag, hold_left, region, changes, refused FROM weir.stat_quarantine;
ALTER SYSTEM RESET weir.quarantine_lag;
ALTER SYSTEM RESET weir.region;
SELECT pg_reload_conf();

-- to whom
CREATE ROLE regress_weir_anybody;
CREATE ROLE regress_weir_monitor IN ROLE pg_monitor;
SET ROLE regress_weir_anybody;
SELECT * FROM weir.read_targets();
SELECT state FROM weir.stat_quarantine;
RESET ROLE;
SET ROLE regress_weir_monitor;
SELECT count(*) FROM weir.read_targets();
SELECT state FROM weir.stat_quarantine;
RESET ROLE;
DROP ROLE regress_weir_anybody, regress_weir_monitor;
