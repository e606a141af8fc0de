# Flow control of writers: who is held when a standby falls behind, how, and by what the wait ends; which standbys count; and
# weir.check_throttle(). Rates and how the lag settles are test/unit/flow_control_test.cpp's and test/bench/flow's.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.lag_sample_interval' => '20ms',
	'weir.heartbeat_interval' => '100ms',
	'weir.max_replica_lag' => '500ms',
	'weir.lag_grace' => '1h',
	'weir.throttle_floor' => '1kB',
	'weir.throttle_max_wait' => 0,
	'weir.max_active' => 2);
my $admin = admin_of($primary);
$admin->query($_)
  foreach 'CREATE TABLE t (i int, text text)', 'ALTER TABLE t ALTER text SET STORAGE PLAIN', 'GRANT ALL ON t TO app',
  'CREATE ROLE vip LOGIN', 'ALTER ROLE vip SET weir.throttle = off', 'GRANT ALL ON t TO vip';
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
my $replica = admin_of($standby);

sub throttle
{
	my ($column) = @_;
	return $admin->value("SELECT $column FROM weir.stat_throttle");
}

sub check
{
	my ($app, $node) = @_;
	return ($node // $admin)->value("SELECT code FROM weir.check_throttle('$app')");
}

sub state_is
{
	my ($state) = @_;
	return poll_until("the throttle is $state", sub { throttle('state') eq $state });
}

sub standing_is
{
	my ($standing) = @_;
	poll_until("the standby is $standing", sub { $admin->value('SELECT standing FROM weir.throttle_standby') eq $standing });
	return;
}

# Replay stands still, and what is written makes a backlog.
sub fall_behind
{
	pause_replay($replica);
	$admin->query(q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 300) g});
	state_is('engaged');
	return;
}

sub catch_up
{
	$replica->query('SELECT pg_wal_replay_resume()');
	return state_is('idle');
}

my $write = q{INSERT INTO t VALUES (1, repeat('y', 4000))};

# Sends a write that has to wait: the floor is a kilobyte a second, so the line is never empty for long.
sub held
{
	my ($session, $sql) = @_;
	my $waiting = throttle('waiting');
	for (1 .. 20)
	{
		$session->send($sql // $write);
		poll_until('answered, or held', sub { $session->answered || throttle('waiting') > $waiting });
		return $session if !$session->answered;
		$session->answer;
	}
	die "not held: $write";
}

poll_until('the standby counts', sub { throttle('standbys') eq '1' });
state_is('idle');
is(check('job'), 'ok', 'a job may write');
is(check('job', $replica), 'standby', 'on a standby it may not');
is(throttle('rate'), '', 'there is no limit');

# ---- who is held

my $open = app_of($primary);
$open->query('BEGIN');
$open->query($write);
fall_behind();
cmp_ok(throttle('rate'), '>=', 1024, 'never less than the floor');
is(throttle('standby'), 'standby', 'whom writers wait for');
my $writer = held(app_of($primary));
is($admin->value("SELECT backend_xid IS NULL AND backend_xmin IS NULL AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = "
		. $writer->pid), 't', 'a writer waits without an xid and without a snapshot');
answers_at_once($admin, $write, 'a superuser is not held');
answers_at_once(app_of($primary, user => 'vip'), $write, 'nor a session with weir.throttle = off');
my $app = app_of($primary);
answers_at_once($app, 'SELECT count(*) FROM t', 'nor one that reads');
$app->query('CREATE TEMP TABLE own (i int)');
$app->query('CREATE UNLOGGED TABLE unlogged (i int)');
$admin->query('GRANT pg_read_server_files TO app');
answers_at_once($app, $_, "nor one that writes a temporary or an unlogged table: $_")
  foreach 'INSERT INTO own VALUES (1)', q{COPY own FROM '/dev/null'}, 'CREATE INDEX own_i ON own (i)', 'REINDEX INDEX own_i',
  'CLUSTER own USING own_i', 'ALTER TABLE own ADD j int', q{COPY unlogged FROM '/dev/null'};
answers_at_once($open, $write, 'nor a transaction that has written');
answers_at_once($open, 'COMMIT', 'nor a COMMIT');
my $other = app_of($primary);
$other->query('SET weir.coalesce = off');
is($other->send('SET weir.throttle = off')->answer->{code}, '42501', 'a session cannot exempt itself');
poll_until('a job may not write', sub { check('job') eq 'lagging' });
my ($value, $threshold, $unit, $retry) = @{ $admin->query(q{SELECT value, threshold, unit, retry_after BETWEEN '0.1 s' AND '30 s'
	FROM weir.check_throttle('job')})->[0] };
ok($value >= $threshold && $threshold == 0.25 && $unit eq 's' && $retry eq 't', "because of $value s, from $threshold s on");

# A slot that is held by who waits for replicas is lent: there are two.
my @blocks = map { my $s = app_of($primary); $s->query('BEGIN'); $s } 1 .. 2;
held($_) foreach @blocks;
answers_at_once($app, 'SELECT 1', 'who waits for replicas lends its slot');

# ---- ways out of the wait

$admin->query('SELECT pg_cancel_backend(' . $writer->pid . ')');
is($writer->answer->{code}, '57014', 'the wait can be cancelled');
$admin->query('SELECT pg_terminate_backend(' . $blocks[0]->pid . ')');
is($blocks[0]->answer->{code}, '57P01', 'and ended');
$blocks[1]->vanish;
poll_until('nobody waits', sub { throttle('waiting') eq '0' });
$other->query(q{SET statement_timeout = '200ms'});
is(held($other)->answer->{code}, '57014', 'statement_timeout holds');
poll_until('nobody waits', sub { throttle('waiting') eq '0' });
nothing_left($admin, 'after that');
held($writer);
reconfigure($admin, 'weir.throttle_max_wait' => '100ms');
is($writer->answer->{tag}, 'INSERT 0 1', 'weir.throttle_max_wait: then it writes all the same');
cmp_ok(throttle('expired'), '>=', 1, 'that is counted');
reconfigure($admin, 'weir.throttle_max_wait' => 0);
held($writer);
reconfigure($admin, 'weir.mode' => 'observe');
is($writer->answer->{tag}, 'INSERT 0 1', 'weir.mode = observe lets the waiting go');
my $waits = throttle('waits');
answers_at_once($writer, $write, 'and nobody is held') for 1 .. 3;
cmp_ok(throttle('waits'), '>', $waits, 'but counted');
# From now on it is expected to write much: at the floor the turn of those behind it would come in minutes.
$writer->query(q{INSERT INTO t SELECT g, repeat('y', 4000) FROM generate_series(1, 400) g});
reconfigure($admin, 'weir.mode' => 'enforce');

# ---- rules for jobs

$admin->query(q{SELECT weir.exempt_app('urgent*')});
is(check('urgent one'), 'exempt', 'an exempt job may write');
$admin->query(q{SELECT weir.exempt_app('short', '50ms')});
poll_until('the exemption ends', sub { check('short') eq 'lagging' });
is($admin->send(q{SELECT weir.throttle_app('x', 2)})->answer->{code}, '22023', 'a ratio is at most 1');
is($admin->send(q{SELECT weir.throttle_app('x', 1, '-1 s')})->answer->{code}, '22023', 'a rule lasts');
is($admin->send(q{SELECT weir.check_throttle('')})->answer->{code}, '22023', 'a job has a name');
is($admin->send(q{SELECT weir.check_throttle(repeat('x', 64))})->answer->{code}, '42622', 'of less than 64 bytes');
is($app->send(q{SELECT weir.exempt_app('urgent')})->answer->{code}, '42501', 'not everybody makes rules');
is(check('job', $app), 'lagging', 'everybody may ask');

# ---- nobody samples

# Each 2 seconds is not too seldom, whatever else it does at its heartbeats.
my $sampler = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir sampler'});
reconfigure($admin, 'weir.lag_sample_interval' => '2s', 'weir.heartbeat_interval' => 0);
# Who is first in the line has its turn within a second. It is stopped before: it does not see that, and nobody behind it has his.
poll_until('somebody is stopped in the line', sub {
	held($writer);
	kill 'STOP', $writer->pid;
	return 1 if throttle('waiting') > 0;
	kill 'CONT', $writer->pid;
	$writer->answer;
	return 0;
});
my $behind = held(app_of($primary));
kill 'STOP', $sampler;
poll_until('what is known is stale', sub { check('job') eq 'stale' });
cmp_ok(throttle('extract(epoch FROM clock_timestamp() - sampled_at)'), '>', 7, 'not before it is 5 s late');
is($behind->answer->{tag}, 'INSERT 0 1', 'nobody is held any more when nobody samples');
answers_at_once($behind, $write, 'nor who comes then');
kill 'CONT', $writer->pid;
is($writer->answer->{tag}, 'INSERT 0 1', 'nor who was before them');
kill 'CONT', $sampler;
poll_until('it samples again', sub { check('job') eq 'lagging' });
reconfigure($admin, 'weir.lag_sample_interval' => '20ms', 'weir.heartbeat_interval' => '100ms');

# ---- it ends

held($writer);
catch_up();
is($writer->answer->{tag}, 'INSERT 0 1', 'when the standby has caught up writers go on');
is(check('job'), 'ok', 'and jobs');
$admin->query(q{SELECT weir.throttle_app('heavy', 0.5)});
is(join(' ', map { check('heavy') } 1 .. 4), 'ok denied ok denied', 'a rule denies its share');
is($admin->value(q{SELECT weir.drop_throttle_rule('heavy')}), 't', 'and can be dropped');
is($admin->value('SELECT app FROM weir.throttle_rules'), 'urgent*', 'those in force are shown');

# ---- coalesced writes wait in their worker

opt_in($admin, 't');
my @clients = map { app_of($primary) } 1 .. 12;

sub write_all
{
	$_->send($write) foreach @clients;
	return map { $_->answer // {} } @clients;
}

SKIP:
{
	skip 'this pg_weir does not coalesce', 1 if $ENV{WITHOUT_COALESCING};
	reconfigure($admin, 'weir.max_active' => 0);
	poll_until('writes are coalesced', sub { write_all(); $admin->value('SELECT requests FROM weir.stat_coalesce') > 0 });
	fall_behind();
	# The first batch finds the line empty.
	my %sent;
	poll_until(
		'somebody waits',
		sub {
			foreach my $client (@clients)
			{
				next if $sent{$client} && !$client->answered;
				$client->answer if $sent{$client};
				$client->send($write);
				$sent{$client} = 1;
			}
			throttle('waiting') > 0;
		});
	catch_up();
	is(scalar(grep { (($_->answer // {})->{tag} // '') eq 'INSERT 0 1' } @clients), 12, 'held with their worker, written in the end');
	poll_until('nobody waits', sub { throttle('waiting') eq '0' });
	$admin->query(q{SELECT weir.uncoalesce_table('t')});
}

# ---- long statements

reconfigure($admin, 'weir.throttle_floor' => '500kB', 'weir.max_active' => 0);
fall_behind();
poll_until('the rate is the floor', sub { $admin->value('SELECT at_floor FROM weir.throttle_standby') eq 't' });
my $bulk = q{INSERT INTO t SELECT g, repeat('z', 1000) FROM generate_series(1, %d) g};
my $slow = app_of($primary);
my $began = Time::HiRes::time();
is($slow->send(sprintf $bulk, 1000)->answer->{tag}, 'INSERT 0 1000', 'a long statement');
cmp_ok(Time::HiRes::time() - $began, '>', 0.7, 'is slowed down between its rows');
cmp_ok(throttle('bulk_waits'), '>', 1, 'which is counted');
$slow->send(sprintf $bulk, 30_000); # a minute
poll_until('it waits', sub { throttle('bulk_waits') > 5 });
my $ddl = admin_of($primary);
$ddl->query('BEGIN');
$ddl->send('LOCK TABLE t');
is(($slow->answer(20) // {})->{tag}, 'INSERT 0 30000', 'but not while somebody waits for its locks');
is($ddl->answer->{tag}, 'LOCK TABLE', 'who then has them');
$ddl->query('COMMIT');
my $bulk_waits = throttle('bulk_waits');
$slow->send(sprintf $bulk, 30_000);
poll_until('it waits', sub { throttle('waiting') > 0 || throttle('bulk_waits') > $bulk_waits });
$admin->query('SELECT pg_cancel_backend(' . $slow->pid . ')');
is($slow->answer->{code}, '57014', 'it can be cancelled');
catch_up();

# ---- autovacuum

sub large_table
{
	my ($name) = @_;
	$admin->query("CREATE TABLE $name (i int) WITH (fillfactor = 10, autovacuum_enabled = off)");
	$admin->query("INSERT INTO $name SELECT generate_series(1, 80000)");
	return;
}

sub vacuumed
{
	my ($name) = @_;
	poll_until("$name was vacuumed", sub {
			$admin->value("SELECT autovacuum_count > 0 FROM pg_stat_user_tables WHERE relname = '$name'") eq 't';
		});
	return;
}

# Autovacuum is to have nothing else to do.
$admin->query($_)
  foreach 'ALTER DATABASE template1 IS_TEMPLATE false', 'DROP DATABASE template1', 'ALTER TABLE t SET (autovacuum_enabled = off)',
  'VACUUM ANALYZE', 'VACUUM';
large_table($_) foreach 'vacuumed', 'old';
$admin->query('SET synchronous_commit = off');
$admin->query('DO $$ BEGIN FOR i IN 1 .. 100010 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$');
$admin->query('RESET synchronous_commit');
fall_behind();
reconfigure($admin, 'autovacuum_naptime' => '1s', 'autovacuum' => 'on');
my $rests = throttle('bulk_waits');
$admin->query('ALTER TABLE old SET (autovacuum_freeze_max_age = 100000)');
vacuumed('old');
is(throttle('bulk_waits'), $rests, 'an autovacuum against wraparound is not slowed down');
$admin->query('ALTER TABLE vacuumed SET (autovacuum_enabled = on, autovacuum_vacuum_insert_threshold = 1)');
poll_until('autovacuum rests', sub { throttle('bulk_waits') > $rests + 1 });
is($admin->value("SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 'vacuumed'"), '0', 'and so it is not done yet');
$ddl->query('BEGIN');
$ddl->query(q{SET LOCAL lock_timeout = '10s'});
is($ddl->send('LOCK TABLE vacuumed')->answer->{tag}, 'LOCK TABLE', 'it makes way as ever');
$ddl->query('COMMIT');
reconfigure($admin, 'weir.throttle_bulk' => 'off');
vacuumed('vacuumed');
reconfigure($admin, 'weir.throttle_bulk' => 'on');
catch_up();

# ---- standbys that do not count

reconfigure($admin, 'weir.lag_grace' => '300ms');
fall_behind();
standing_is('stuck');
state_is('idle');
is(check('job'), 'lagging', 'a job waits all the same');
$replica->query('SELECT pg_wal_replay_resume()');
standing_is('counts');
$replica->close;
$standby->stop('immediate');
standing_is('disconnected');
is(check('job'), 'ok', 'a job does not wait for a standby that is gone');
$standby->start;
standing_is('counts');
my $log = slurp_file($primary->logfile);
like($log, qr/pg_weir: standby "standby" does not count for the throttle any more: it has replayed nothing/, 'that is in the log');
like($log, qr/pg_weir: standby "standby" does not count for the throttle any more: it has been disconnected/, 'that, too');
unlike($log, qr/PANIC|TRAP|signal 11/, 'nothing fell over');
nothing_left($admin, 'in the end');

# ---- rules survive a crash

sub restart
{
	$primary->stop('immediate');
	$primary->start;
	$admin = admin_of($primary);
	return;
}

$admin->query(q{SELECT weir.throttle_app('half', 0.5, '2 hours')});
my $rules = 'SELECT app, exempt, ratio, expires_at FROM weir.throttle_rules ORDER BY 1';
my $before = $admin->query($rules);
restart();
is_deeply($admin->query($rules), $before, 'rules survive a crash, until they end');
is(check('urgent one'), 'exempt', 'and are in force');
my $file = $primary->data_dir . '/pg_weir_throttle_rules';
append_to_file($file, 'x');
restart();
is($admin->value('SELECT count(*) FROM weir.throttle_rules'), 0, 'a damaged file is not used');
ok(-e "$file.damaged" && !-e $file, 'but kept');
like(slurp_file($primary->logfile), qr/WARNING:  pg_weir: no throttle rules are in force/, 'which is in the log');
mkdir "$file.tmp" or die;
is($admin->send(q{SELECT weir.exempt_app('x')})->answer->{code} // '', '42809', 'a rule that cannot be written is an error');
is($admin->value('SELECT count(*) FROM weir.throttle_rules'), 0, 'and not in force');
rmdir "$file.tmp";
$admin->query(q{SELECT weir.exempt_app('x')});
is($admin->value('SELECT app FROM weir.throttle_rules'), 'x', 'then it can');

# ---- nobody knows how old the WAL is that a standby lacked before the primary's start

$standby->stop;
$standby->append_conf('postgresql.conf', "recovery_min_apply_delay = '1h'");
$admin->query($write);
restart();
$standby->start;
poll_until('it streams', sub { $admin->value(q{SELECT state FROM weir.stat_replica}) eq 'streaming' });
poll_until('how far it is behind is not known', sub { check('job') eq 'unknown' });
my $read_targets = q{SELECT count(*) FROM weir.read_targets('1 hour')};
is($admin->value(q{SELECT replay_lag < '1 hour' FROM weir.stat_replica}), 't', 'though less is shown');
is($admin->value($read_targets), 0, 'it is not within an hour');
reconfigure(admin_of($standby), 'recovery_min_apply_delay' => 0);
poll_until('it is known again', sub { check('job') eq 'ok' });
is($admin->value($read_targets), 1, 'and it is within an hour');

done_testing();
