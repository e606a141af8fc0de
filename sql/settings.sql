-- Every setting: its default and range, who may change it and when, and what is said of a mistake. Nothing stays set.

-- A line for each row, as it is: what is added changes no other line.
\pset format unaligned
\pset footer off

-- what there is
SELECT name, boot_val AS "default", unit, context, vartype, min_val, max_val, enumvals
FROM pg_settings WHERE name LIKE 'weir.%' ORDER BY name COLLATE "C";
SELECT name, short_desc, extra_desc FROM pg_settings WHERE name LIKE 'weir.%' ORDER BY name COLLATE "C";
SELECT name, setting FROM pg_settings WHERE name LIKE 'weir.%' AND setting <> boot_val;
SHOW weir.mode;
SHOW weir.queue_timeout;
SHOW weir.idle_yield;
SHOW weir.stall_timeout;

-- not for one session; and nobody else's names
SET weir.mode = 'off';
SET weir.max_active = 1;
SET weir.max_active_min = 1;
SET weir.max_active_max = 1;
SET weir.queue_timeout = 1;
SET weir.queue_size = 1;
SET weir.max_startups = 1;
SET weir.startup_rate = 1;
SET weir.startup_burst = 1;
SET weir.startup_share = 1;
SET weir.startup_timeout = 1;
SET weir.startup_queue_size = 1;
SET weir.startup_sqlstate = '57P03';
SET weir.failed_login_rate = 1;
SET weir.log_min_startup_wait = 1;
SET weir.idle_yield = 1;
SET weir.coalesce_workers = 1;
SET weir.submit_workers = 1;
SET weir.submit_key_retention = 1;
SET weir.http_port = 1;
SET weir.http_listen_address = '::1';
SET weir.quarantine_lag = 1;
SET weir.quarantine_hold = 1;
SET weir.coalesce_max_batch = 1;
SET weir.coalesce_max_delay = 1;
SET weir.coalesce_lock_timeout = 1;
SET weir.stall_timeout = 1;
SET weir.superuser_bypass = off;
SET weir.reject_as = 'fatal';
SET weir.classes = 'a:';
SET weir.class_map = 'role=a => b';
SET weir.lag_sample_interval = 1;
SET weir.heartbeat_interval = 1;
SET weir.lag_replicas = 'a';
SET weir.region = 'a';
SET weir.max_replica_lag = 1;
SET weir.max_replica_lag_bytes = 1;
SET weir.lag_quorum = 1;
SET weir.lag_grace = 1;
SET weir.throttle_bulk = off;
SET weir.throttle_floor = 1;
SET weir.throttle_max_wait = 1;
SET weir.check_throttle_lag = 1;
SET weir.min_lsn = '0/x';
SET weir.min_lsn = '0/1@0';
SET weir.min_lsn = '0/1 ';
SET weir.lsn_wait_timeout = '2h';
SET weir.nonsense = 1;
ALTER SYSTEM SET weir.nonsense = 1;

-- out of range, or of another kind
ALTER SYSTEM SET weir.mode = 'on';
ALTER SYSTEM SET weir.max_active = -2;
ALTER SYSTEM SET weir.max_active = 262144;
ALTER SYSTEM SET weir.max_active = 'many';
ALTER SYSTEM SET weir.max_active_min = 0;
ALTER SYSTEM SET weir.max_active_min = 262144;
ALTER SYSTEM SET weir.max_active_max = -1;
ALTER SYSTEM SET weir.max_active_max = 262144;
ALTER SYSTEM SET weir.queue_timeout = -1;
ALTER SYSTEM SET weir.queue_timeout = '25 d';
ALTER SYSTEM SET weir.queue_timeout = '1 week';
ALTER SYSTEM SET weir.queue_timeout = '1 kB';
ALTER SYSTEM SET weir.queue_size = -1;
ALTER SYSTEM SET weir.coalesce = 'queued';
ALTER SYSTEM SET weir.coalesce_workers = 0;
ALTER SYSTEM SET weir.coalesce_workers = 9;
ALTER SYSTEM SET weir.coalesce_max_batch = 4097;
ALTER SYSTEM SET weir.coalesce_max_delay = '2s';
ALTER SYSTEM SET weir.coalesce_lock_timeout = 0;
ALTER SYSTEM SET weir.queue_size = 262144;
ALTER SYSTEM SET weir.max_startups = -2;
ALTER SYSTEM SET weir.max_startups = 262144;
ALTER SYSTEM SET weir.startup_rate = -1;
ALTER SYSTEM SET weir.startup_rate = 262144;
ALTER SYSTEM SET weir.startup_burst = -1;
ALTER SYSTEM SET weir.startup_share = 0;
ALTER SYSTEM SET weir.startup_share = 101;
ALTER SYSTEM SET weir.startup_timeout = -1;
ALTER SYSTEM SET weir.startup_queue_size = -1;
ALTER SYSTEM SET weir.startup_sqlstate = '08006';
ALTER SYSTEM SET weir.failed_login_rate = 1000001;
ALTER SYSTEM SET weir.log_min_startup_wait = -2;
ALTER SYSTEM SET weir.idle_yield = -2;
ALTER SYSTEM SET weir.idle_yield = '61 min';
ALTER SYSTEM SET weir.stall_timeout = -1;
ALTER SYSTEM SET weir.superuser_bypass = 'sometimes';
ALTER SYSTEM SET weir.reject_as = 'warning';
ALTER SYSTEM SET weir.lag_sample_interval = '5ms';
ALTER SYSTEM SET weir.lag_sample_interval = '61s';
ALTER SYSTEM SET weir.heartbeat_interval = -1;
ALTER SYSTEM SET weir.heartbeat_interval = '61min';
ALTER SYSTEM SET weir.max_replica_lag = -1;
ALTER SYSTEM SET weir.max_replica_lag = '25h';
ALTER SYSTEM SET weir.max_replica_lag = '1MB';
ALTER SYSTEM SET weir.max_replica_lag_bytes = -1;
ALTER SYSTEM SET weir.max_replica_lag_bytes = '2TB';
ALTER SYSTEM SET weir.max_replica_lag_bytes = '1s';
ALTER SYSTEM SET weir.lag_quorum = 0;
ALTER SYSTEM SET weir.lag_quorum = 65;
ALTER SYSTEM SET weir.lag_grace = '99ms';
ALTER SYSTEM SET weir.lag_grace = '61min';
ALTER SYSTEM SET weir.throttle = 'sometimes';
ALTER SYSTEM SET weir.throttle_bulk = 'sometimes';
ALTER SYSTEM SET weir.throttle_floor = 0;
ALTER SYSTEM SET weir.throttle_floor = '2GB';
ALTER SYSTEM SET weir.throttle_max_wait = -1;
ALTER SYSTEM SET weir.throttle_max_wait = '25d';
ALTER SYSTEM SET weir.check_throttle_lag = -1;
ALTER SYSTEM SET weir.check_throttle_lag = '25h';
SELECT 'eu/*,' || repeat('x', 256) AS long \gset
ALTER SYSTEM SET weir.lag_replicas = :'long';

-- weir.classes: mistakes
ALTER SYSTEM SET weir.classes = '7up:';
ALTER SYSTEM SET weir.classes = 'batch';
ALTER SYSTEM SET weir.classes = 'batch; other:';
ALTER SYSTEM SET weir.classes = 'batch: ; : weight=1';
ALTER SYSTEM SET weir.classes = 'batch: wieght=1';
ALTER SYSTEM SET weir.classes = 'batch: 3';
ALTER SYSTEM SET weir.classes = 'batch: weight';
ALTER SYSTEM SET weir.classes = 'batch: weight 3';
ALTER SYSTEM SET weir.classes = 'batch: weight=';
ALTER SYSTEM SET weir.classes = 'batch: weight=0';
ALTER SYSTEM SET weir.classes = 'batch: weight=1001';
ALTER SYSTEM SET weir.classes = 'batch: weight=1.5';
ALTER SYSTEM SET weir.classes = 'batch: weight=3x';
ALTER SYSTEM SET weir.classes = 'batch: reserved=-1';
ALTER SYSTEM SET weir.classes = 'batch: max_active=262144';
ALTER SYSTEM SET weir.classes = 'batch: queue_size=99999999999999999999';
ALTER SYSTEM SET weir.classes = 'batch: queue_timeout=3 s';
ALTER SYSTEM SET weir.classes = 'batch: queue_timeout=1week';
ALTER SYSTEM SET weir.classes = 'batch: queue_timeout=25d';
ALTER SYSTEM SET weir.classes = 'batch: queue_timeout=-1';
ALTER SYSTEM SET weir.classes = 'batch: weight=1 weight=2';
ALTER SYSTEM SET weir.classes = 'batch: weight=1; batch: weight=2';
ALTER SYSTEM SET weir.classes = 'batch: weight=1; BATCH:';
ALTER SYSTEM SET weir.classes = 'interactive: weight=8 reserved=2; batch: weight=1 max_activ=4 queue_timeout=5min';
SELECT repeat('a', 64) || ':' AS classes \gset
ALTER SYSTEM SET weir.classes = :'classes';
SELECT string_agg('a' || i || ':', ';' ORDER BY i) AS classes FROM generate_series(1, 32) i \gset
ALTER SYSTEM SET weir.classes = :'classes';

-- what it takes
ALTER SYSTEM SET weir.classes = 'interactive: weight=8 reserved=2; batch: weight=1 max_active=4 queue_timeout=5min';
ALTER SYSTEM SET weir.classes = ' a : weight = 1000 , reserved=262143,queue_size=0 ;_b-c$1:queue_timeout=24d;default:max_active=0;';
ALTER SYSTEM SET weir.classes = 'a: queue_timeout=2147483647; b: queue_timeout=1ms; c: queue_timeout=2s; d: queue_timeout=3h; e: queue_timeout=0';
SELECT string_agg('a' || i || ':', ';' ORDER BY i) AS classes FROM generate_series(1, 31) i \gset
ALTER SYSTEM SET weir.classes = :'classes';
SELECT 'default: ;' || string_agg('a' || i || ':', ';' ORDER BY i) AS classes FROM generate_series(1, 31) i \gset
ALTER SYSTEM SET weir.classes = :'classes';
ALTER SYSTEM SET weir.classes = '';
ALTER SYSTEM RESET weir.classes;

-- weir.class_map: mistakes
ALTER SYSTEM SET weir.class_map = 'batch';
ALTER SYSTEM SET weir.class_map = 'role';
ALTER SYSTEM SET weir.class_map = '=> batch';
ALTER SYSTEM SET weir.class_map = 'role=';
ALTER SYSTEM SET weir.class_map = 'role=> batch';
ALTER SYSTEM SET weir.class_map = 'role=etl';
ALTER SYSTEM SET weir.class_map = 'role=etl => ';
ALTER SYSTEM SET weir.class_map = 'role=etl => 7up';
ALTER SYSTEM SET weir.class_map = 'role=etl => batch other';
ALTER SYSTEM SET weir.class_map = 'role=etl => batch; role=etl2; role=x => batch';
ALTER SYSTEM SET weir.class_map = 'rolle=etl => batch';
ALTER SYSTEM SET weir.class_map = 'role=etl, role=app => batch';
ALTER SYSTEM SET weir.class_map = 'role="etl => batch';
ALTER SYSTEM SET weir.class_map = 'role=e"tl" => batch';
ALTER SYSTEM SET weir.class_map = 'address=somewhere => batch';
ALTER SYSTEM SET weir.class_map = 'address=10.0.0.0/33 => batch';
ALTER SYSTEM SET weir.class_map = 'address=10.0.0.0/x => batch';
ALTER SYSTEM SET weir.class_map = 'address=10.0.0.1/8 => batch';
ALTER SYSTEM SET weir.class_map = 'address=fe80::1/10 => batch';
ALTER SYSTEM SET weir.class_map = 'address="10.0.0 .0" => batch';
SELECT string_agg('role=a => b', ';') AS too_many FROM generate_series(1, 65) \gset
SELECT 'role=' || repeat('x', 4095) || ' => b' AS too_long \gset
\set VERBOSITY sqlstate
ALTER SYSTEM SET weir.class_map = :'too_many';
ALTER SYSTEM SET weir.class_map = :'too_long';
\set VERBOSITY default

-- what it takes
ALTER SYSTEM SET weir.class_map = 'application_name=report* => batch; database=crm, role=web* => interactive; address=10.1.0.0/16 => batch';
ALTER SYSTEM SET weir.class_map = ' role = "a ""b"" c" , database=a?c=>x;address=local=>x;address=fe80::/10=>x;address=*=>x;address=::ffff:10.0.0.0/104=>x;';
SELECT string_agg('role=a => b', ';') AS most FROM generate_series(1, 64) \gset
ALTER SYSTEM SET weir.class_map = :'most';
SELECT 'role=' || repeat('x', 4094) || ' => b' AS longest \gset
ALTER SYSTEM SET weir.class_map = :'longest';
ALTER SYSTEM SET weir.class_map = '';
ALTER SYSTEM RESET weir.class_map;

-- weir.class
SET weir.class = 'nonsense';
SET weir.class = '7up';
SET weir.class = 'default batch';
SET weir.class = 'Default';
SET weir.class = '';
CREATE ROLE regress_weir_app;
ALTER ROLE regress_weir_app SET weir.class = 'nonsense';
ALTER ROLE regress_weir_app SET weir.class = 'a;b';
ALTER ROLE regress_weir_app SET weir.class = 'default';
ALTER ROLE regress_weir_app SET weir.mode = 'off';
SET ROLE regress_weir_app;
SET weir.class = 'default';
ALTER ROLE regress_weir_app SET weir.class = 'default';
RESET ROLE;
GRANT SET ON PARAMETER weir.class TO regress_weir_app;
SET ROLE regress_weir_app;
SET weir.class = 'default';
SET weir.class = 'nonsense';
RESET weir.class;
RESET ROLE;
DROP OWNED BY regress_weir_app;
DROP ROLE regress_weir_app;

-- nothing stays set
SELECT name, setting FROM pg_file_settings WHERE name LIKE 'weir.%';
