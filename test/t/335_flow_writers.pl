# Flow control by bytes, of classes of low weight, of each statement that writes much, by a quorum of two standbys; and what the log says
# of standbys that are given up. Who else is held, and how a wait ends, is 330_flow_control.pl's.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.lag_sample_interval' => '20ms',
	'weir.heartbeat_interval' => '100ms',
	'weir.lag_grace' => '1h',
	'weir.throttle_floor' => '1kB',
	'weir.throttle_max_wait' => 0,
	'weir.max_active' => 0,
	'weir.classes' => 'default: weight=8; batch: weight=1');
my $admin = admin_of($primary);
my $rows_file = $primary->basedir . '/rows';
$admin->query($_)
  foreach 'CREATE TABLE t (i int, text text)', 'ALTER TABLE t ALTER text SET STORAGE PLAIN', 'GRANT ALL ON t TO app',
  'GRANT SET ON PARAMETER weir.class TO app', 'GRANT pg_read_server_files TO app',
  "COPY (SELECT g, repeat('x', 1000) FROM generate_series(1, 20) g) TO '$rows_file'", 'CREATE EXTENSION file_fdw',
  'CREATE SERVER files FOREIGN DATA WRAPPER file_fdw', "CREATE FOREIGN TABLE elsewhere (text text) SERVER files OPTIONS (filename '$rows_file')",
  'GRANT ALL ON elsewhere TO app';
$primary->backup('base');
my (%standby, %replica);
foreach my $name (qw(first second))
{
	$standby{$name} = PostgreSQL::Test::Cluster->new($name);
	$standby{$name}->init_from_backup($primary, 'base', has_streaming => 1);
	$standby{$name}->start;
	$replica{$name} = admin_of($standby{$name});
}

sub throttle
{
	my ($columns) = @_;
	return $admin->value("SELECT concat_ws(' ', $columns) FROM weir.stat_throttle");
}

sub state_is
{
	my ($state) = @_;
	return poll_until("the throttle is $state", sub { throttle('state') eq $state });
}

# Of a standby.
sub becomes
{
	my ($name, $condition) = @_;
	return poll_until("$name: $condition",
		sub { $admin->value("SELECT $condition FROM weir.throttle_standby WHERE application_name = '$name'") eq 't' });
}

sub check
{
	my ($columns) = @_;
	return $admin->value("SELECT concat_ws(' ', $columns) FROM weir.check_throttle('job')");
}

sub pause
{
	my ($name) = @_;
	pause_replay($replica{$name});
	return $replica{$name}->value('SELECT pg_last_wal_replay_lsn()');
}

sub resume
{
	my ($name) = @_;
	$replica{$name}->query('SELECT pg_wal_replay_resume()');
	return;
}

# Writes until that much has been written since $lsn. What the views show of it comes later.
sub fill
{
	my ($lsn, $bytes) = @_;
	until ($admin->value("SELECT pg_current_wal_insert_lsn() - '$lsn'::pg_lsn") >= $bytes)
	{
		$admin->query(q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 50) g});
	}
	return;
}

# A test: what the session sends waits for replicas, and has no xid, snapshot or lock that is in somebody's way. Who is the first in the
# line waits for what is in debt, a second of the rate: that may be missed, or nobody has written yet. So it may try several times.
sub is_held
{
	my ($session, $sql, $name, $tries) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $waiting = throttle('waiting');
	for (my $left = $tries // 1; $left > 0; $left--)
	{
		$session->send($sql);
		poll_until("answered, or held: $sql", sub { $session->answered || throttle('waiting') > $waiting });
		last if !$session->answered;
		$session->answer if $left > 1;
	}
	my $pid = $session->pid;
	return is(
		$admin->value("SELECT concat_ws(' ', wait_event_type, coalesce(backend_xid::text, 'no'), coalesce(backend_xmin::text, 'no'),
			(SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'relation' AND mode NOT IN ('AccessShareLock', 'RowExclusiveLock')))
			FROM pg_stat_activity a WHERE pid = $pid"), 'Extension no no 0', $name);
}

# The same, and it stays where it is, and whoever comes then behind it: a process that is stopped does not see that its turn has come.
sub stays_held
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_held($session, $sql, $name, 10);
	kill 'STOP', $session->pid;
	return;
}

my $write = q{INSERT INTO t VALUES (1, repeat('y', 4000))};

# What statements that write much need; they are to be the owner's.
my $rows = q{SELECT g AS i, repeat('x', 1000) AS text FROM generate_series(1, 20) g};
my $app = app_of($primary);
$app->query("CREATE TABLE $_ AS $rows") foreach qw(copied indexed indexed_late reindexed clustered altered);
$app->query($_)
  foreach 'CREATE INDEX ON reindexed (i)', 'CREATE INDEX clustered_i ON clustered (i)',
  'CREATE MATERIALIZED VIEW refreshed AS SELECT * FROM copied';

# They are expected to write much again: at the floor that takes a minute, for which those behind them wait. The standbys are seen to
# replay much, too.
my ($etl, $blocker) = map { app_of($primary) } 1 .. 2;
$etl->query('SET weir.class = batch');
$_->query(q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 2000) g}) foreach $etl, $blocker;
poll_until('both follow', sub { $admin->value('SELECT count(*) FROM weir.throttle_standby WHERE lag_bytes < 10000') == 2 });
is(throttle('state'), 'off', 'without a target there is no throttle');

# ---- bytes alone; who weighs little is slowed down first

reconfigure($admin, 'weir.max_replica_lag_bytes' => '2MB');
poll_until('both count', sub { throttle('state, standbys, max_lag') eq 'idle 2' });
my $paused_at = pause('first');
fill($paused_at, 800_000);
state_is('batch');
is(throttle('rate IS NULL, batch_rate IS NULL'), 't f', 'with little behind only classes of low weight are slowed down');
poll_until('to little', sub { throttle('batch_rate') < 5_000 });
stays_held($etl, $write, 'one of these is held');
is(throttle('waiting, batch_waits > 0, waits'), '1 t 0', 'and counted apart');
answers_at_once($blocker, $write, 'the heaviest class is not held') for 1 .. 3;
is(throttle('waits'), 0, 'nor counted');
is(check('allowed, code, threshold, unit'), 't ok 1048576 bytes', 'a job is measured in bytes');

fill($paused_at, 1_100_000);
state_is('engaged');
like(throttle('batch_rate < rate, batch_rate >= 1024, standby'), qr/^t t first$/, 'then all are, classes of low weight more');
is(check('allowed, code, value >= threshold, threshold, unit, retry_after > interval \'0\''), 'f lagging t 1048576 bytes t',
	'and jobs are denied');

# ---- statements that write much

# Far behind, writers are at the floor.
fill($paused_at, 6_000_000);
becomes('first', 'at_floor');
stays_held($blocker, $write, 'the heaviest class is held, too');
my %statement = (
	'COPY FROM' => "COPY copied FROM '$rows_file'",
	'CREATE INDEX' => 'CREATE INDEX ON indexed (i)',
	'CREATE INDEX CONCURRENTLY' => 'CREATE INDEX CONCURRENTLY ON indexed_late (i)',
	'CREATE TABLE AS' => "CREATE TABLE created AS $rows",
	'SELECT INTO' => 'SELECT * INTO selected FROM indexed',
	'CREATE MATERIALIZED VIEW' => "CREATE MATERIALIZED VIEW viewed AS $rows",
	'REFRESH MATERIALIZED VIEW' => 'REFRESH MATERIALIZED VIEW refreshed',
	'REINDEX' => 'REINDEX TABLE reindexed',
	'CLUSTER' => 'CLUSTER clustered USING clustered_i',
	'ALTER TABLE' => 'ALTER TABLE altered ALTER i TYPE bigint');
my %tag = (
	(map { $_ => $_ } keys %statement),
	'COPY FROM' => 'COPY 20',
	'CREATE INDEX CONCURRENTLY' => 'CREATE INDEX',
	map { $_ => 'SELECT 20' } 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW');
my %writer = map { $_ => app_of($primary) } keys %statement;
my ($waits, $batch_waits, $expired) = map { throttle($_) } qw(waits batch_waits expired);
is_held($writer{$_}, $statement{$_}, "$_ is held") foreach sort keys %statement;
$waits += keys %statement;
answers_at_once($app, $_, "not held: $_")
  foreach 'SELECT count(*) FROM indexed', q{COPY indexed TO STDOUT}, "EXPLAIN $write", 'VACUUM indexed', 'ANALYZE indexed';
is(($app->send(q{INSERT INTO elsewhere VALUES ('x')})->answer($PgWeir::at_once_s) // {})->{code},
	'0A000', 'not held: a write to a foreign table, which fails for another reason');
is(throttle('waiting, waits, batch_waits, expired'), join(' ', 2 + keys %statement, $waits, $batch_waits, $expired), 'each is counted once, and waits');
reconfigure($admin, 'weir.throttle_max_wait' => '1ms');
is(($writer{$_}->answer // {})->{tag}, $tag{$_}, "$_ goes through in the end") foreach sort keys %statement;
kill 'CONT', map { $_->pid } $etl, $blocker;
is(($_->answer // {})->{tag}, 'INSERT 0 1', 'and so does who was before them') foreach $etl, $blocker;
is(throttle('waiting, waits, batch_waits, expired'), join(' ', 0, $waits, $batch_waits, $expired + 2 + keys %statement), 'nobody waited twice');
is($admin->value(q{SELECT concat_ws(' ', (SELECT count(*) FROM copied), (SELECT count(*) FROM created), (SELECT count(*) FROM selected),
	(SELECT count(*) FROM viewed), (SELECT count(*) > 0 FROM refreshed),
	(SELECT count(*) FROM pg_index WHERE indisvalid AND indrelid IN ('indexed'::regclass, 'indexed_late'::regclass)),
	(SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 'altered'::regclass AND attname = 'i'))}),
	'40 20 20 20 t 2 bigint', 'and each has done its work');

# ---- a lag of its own for jobs

# Without a target it lets go at once.
reconfigure($admin, 'weir.max_replica_lag_bytes' => 0, 'weir.throttle_max_wait' => 0);
state_is('off');
reconfigure($admin, 'weir.max_replica_lag' => '1h');
poll_until('half of the target counts', sub { check('allowed, code, threshold, unit') eq 't ok 1800 s' });
reconfigure($admin, 'weir.check_throttle_lag' => '1s');
poll_until('weir.check_throttle_lag counts', sub { check('threshold') eq '1' });
poll_until('the standby is so far behind', sub { check('value') >= 1 });
is(check('allowed, code, value < 1800, unit'), 'f lagging t s', 'weir.check_throttle_lag: a job is denied long before writers are slowed down');
is(throttle('state'), 'idle', 'and they are not');

# ---- a quorum of two

reconfigure($admin, 'weir.check_throttle_lag' => 0, 'weir.max_replica_lag' => '2s', 'weir.lag_quorum' => 2);
becomes('first', 'pressure > 1');
is(throttle('state, standbys, standby, engagements'), 'idle 2 second 1', 'weir.lag_quorum = 2: one that is behind slows nobody down');
is(check('code'), 'ok', 'nor jobs');
pause('second');
state_is('engaged');
becomes('first', 'pressure > 1');
poll_until('a job may not write', sub { check('code') eq 'lagging' });
pass('two do, writers and jobs');
resume('second');

# ---- what the log says

my $log_read = -s $primary->logfile;

# A test: that comes next, of what this is asked for.
sub is_logged
{
	my ($line) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_until("in the log: $line", sub { slurp_file($primary->logfile, $log_read) =~ /LOG:  pg_weir: standby $line/ && ($log_read += $+[0]) });
	return pass("in the log: $line");
}

reconfigure($admin, 'weir.lag_quorum' => 1, 'weir.lag_grace' => '300ms');
becomes('first', q{standing = 'stuck'});
resume('first');
is_logged('"first" is back, and does not count for the throttle yet');
is_logged('"first" counts for the throttle');

# Nothing is replayed until the delay is over: that is not to be taken for stuck. Then each heartbeat is.
reconfigure($admin, 'weir.lag_grace' => '1h', 'weir.max_replica_lag' => 0, 'weir.max_replica_lag_bytes' => '16kB');
reconfigure($replica{second}, 'recovery_min_apply_delay' => '3s');
becomes('second', q{lag > '2 s'});
my $replayed = q{SELECT replay_lsn FROM weir.stat_replica WHERE application_name = 'second'};
my $before = $admin->value($replayed);
poll_until('it replays', sub { $admin->value($replayed) ne $before });
reconfigure($admin, 'weir.lag_grace' => '1s');
fill($admin->value('SELECT pg_current_wal_insert_lsn()'), 1_000_000);
is_logged('"second" does not count for the throttle any more: it is too far behind');
reconfigure($admin, 'weir.max_replica_lag' => '1s', 'weir.max_replica_lag_bytes' => 0);
is_logged('"second" counts for the throttle');
is_logged('"second" does not count for the throttle: slowing writers down does not help it');
is(check('code'), 'lagging', 'a job waits for it all the same');
no_warnings($primary, 'nothing else is wrong');

done_testing();
