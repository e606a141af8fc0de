# Somebody sets the machine's clock back by an hour: whoever waits waits no longer for it, and what was watched by the clock is
# watched as before.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $library = clock_library() or plan(skip_all => 'there is no C compiler');
my $clock = PostgreSQL::Test::Utils::tempdir() . '/clock_of_both';
my $ahead_s = 0;
set_clock($clock, $ahead_s);
local $ENV{WEIR_CLOCK} = $clock;
local $ENV{LD_PRELOAD} = $library;

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.max_active' => 0,
	'weir.max_startups' => 1,
	'weir.lag_sample_interval' => '20ms',
	'weir.heartbeat_interval' => '100ms',
	'weir.max_replica_lag' => '500ms',
	'weir.lag_grace' => '1h',
	'weir.throttle_floor' => '1kB',
	'weir.throttle_max_wait' => 0);
my $admin = admin_of($primary);
$admin->query($_) foreach 'CREATE TABLE t (i int, text text)', 'ALTER TABLE t ALTER text SET STORAGE PLAIN', 'GRANT ALL ON t TO app',
  'CREATE TABLE hot (id int PRIMARY KEY, n int)', 'INSERT INTO hot VALUES (1, 0), (2, 0)', 'GRANT ALL ON hot TO app';
my ($app, $holder) = map { app_of($primary) } 1 .. 2;

# A test: $session, which waits, and may for 3 s, has its answer soon although the clock is set back meanwhile.
sub waits_no_longer
{
	my ($session, $name) = @_;
	my $shown = $admin->value('SELECT extract(epoch FROM clock_timestamp())');
	set_clock($clock, $ahead_s -= 3600);
	cmp_ok($admin->value('SELECT extract(epoch FROM clock_timestamp())') - $shown, '<', -3500, "$name: the clock is set back");
	ok(!$session->answered, "$name: it waits");
	my $answer = $session->answer(20);
	ok($answer, "$name: it waits no longer for that");
	return $answer // {};
}

# ---- for a standby that never came

reconfigure($admin, 'weir.lag_grace' => '1s');
my $code = q{SELECT code FROM weir.check_throttle('job')};
poll_until('nobody follows this server', sub { $admin->value($code) eq 'ok' });
set_clock($clock, $ahead_s -= 3600);
poll_until('lag is sampled by the new time', sub { $admin->value('SELECT sampled_at <= clock_timestamp() FROM weir.stat_throttle') eq 't' });
is($admin->value($code), 'ok', 'nobody follows this server, and that is known still');
reconfigure($admin, 'weir.lag_grace' => '1h');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
my $replica = admin_of($standby);

# ---- for a slot

reconfigure($admin, 'weir.max_active' => 1, 'weir.queue_timeout' => '3s');
$holder->send('SELECT pg_sleep(600)');
poll_until('a slot is held', sub { admission($admin, 'active') == 1 });
$app->send('SELECT 1');
wait_for_waiting($admin, 1);
is_refused(waits_no_longer($app, 'for a slot'), qr/./, 'for a slot');
$app->send('SELECT 1');
wait_for_waiting($admin, 1);
$admin->query('SELECT pg_cancel_backend(' . $holder->pid . ')');
is(($app->answer($PgWeir::at_once_s) // {})->{tag}, 'SELECT 1', 'slots are handed on as before');
$holder->answer;
nothing_left($admin, 'for a slot');
reconfigure($admin, 'weir.max_active' => 0);

# ---- to log in

{
	reconfigure($admin, 'weir.startup_timeout' => '3s');
	my $free = occupy_startup($primary, $admin, admin_of($primary));
	my ($late) = queue_startups($primary, $admin, 1);
	is_refused(waits_no_longer($late, 'to log in'), qr/./, 'to log in');
	$free->();
	no_startups_left($admin, 'to log in');
	reconfigure($admin, 'weir.max_startups' => 0);
}

# ---- for a worker that is stuck

SKIP:
{
	skip 'this pg_weir does not coalesce', 1 if $ENV{WITHOUT_COALESCING};
	opt_in($admin, 'hot');
	my $blocker = admin_of($primary);
	my @company = map { app_of($primary) } 1 .. 14;
	my $worker;
	$app = app_of($primary);
	poll_until('a worker', sub {
		$app->query('UPDATE hot SET n = n WHERE id = 2');
		$worker = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'});
	});
	$blocker->query($_) foreach 'BEGIN', 'UPDATE hot SET n = n WHERE id = 1';
	$_->send('UPDATE hot SET n = n + 1 WHERE id = 1') foreach @company;
	poll_until('company', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });
	kill 'STOP', $worker;
	$app->send('UPDATE hot SET n = n + 1 WHERE id = 2');
	poll_until('it is queued', sub { $admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $app->{pid}") eq 'Extension' });
	is(waits_no_longer($app, 'for a worker')->{tag}, 'UPDATE 1', 'for a worker: the session does it itself');
	kill 'CONT', $worker;
	$blocker->query('COMMIT');
	is(scalar(grep { (($_->answer // {})->{tag} // '') eq 'UPDATE 1' } @company), scalar @company, 'and all others');
	is($admin->value('SELECT n FROM hot WHERE id = 2'), 1, 'once');
	my $taken = coalesced_requests($admin, 'hot');
	$_->query('SELECT 1') foreach @company;
	poll_until('the worker is sent something again', sub {
		$_->send('UPDATE hot SET n = n + 1 WHERE id = 1') foreach @company;
		$_->answer foreach @company;
		coalesced_requests($admin, 'hot') > $taken;
	});
	$admin->query(q{SELECT weir.uncoalesce_table('hot')});
	$_->close foreach @company, $blocker;
}

# ---- for replicas, and for what they replay

reconfigure($admin, 'weir.throttle_max_wait' => '3s');
$app = app_of($primary);
# It is expected to write much from then on: at the floor its turn would come in minutes.
$app->query(q{INSERT INTO t SELECT g, repeat('y', 4000) FROM generate_series(1, 400) g});
pause_replay($replica);
$admin->query(q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 300) g});
poll_until('the throttle is engaged', sub { $admin->value('SELECT state FROM weir.stat_throttle') eq 'engaged' });
my $lag_s = 'SELECT extract(epoch FROM replay_lag) FROM weir.stat_replica WHERE application_name = \'standby\'';
my $lag = $admin->value($lag_s);
poll_until('somebody is held', sub {
	$app->answer if $app->{sent}++;
	$app->send(q{INSERT INTO t VALUES (1, repeat('y', 4000))});
	poll_until('answered, or held', sub { $app->answered || $admin->value('SELECT waiting FROM weir.stat_throttle') > 0 });
	!$app->answered;
});
is(waits_no_longer($app, 'for replicas')->{tag}, 'INSERT 0 1', 'for replicas: it writes');
my $reader = app_of($standby, options => '-c weir.lsn_wait_timeout=3s');
my $token = $admin->value('SELECT pg_current_wal_insert_lsn()');
$reader->query("SET weir.min_lsn = '$token'");
$reader->send('SELECT count(*) FROM t');
poll_until('a reader waits', sub { $replica->value('SELECT waiting FROM weir.stat_replay_wait') == 1 });
is(waits_no_longer($reader, 'for replay')->{code}, '57014', 'for replay: an error');
my $now = $admin->value($lag_s);
ok($now > $lag && $now < $lag + 60, "lag goes on as before: from $lag s to $now s");
$replica->query('SELECT pg_wal_replay_resume()');
poll_until('the throttle is idle', sub { $admin->value('SELECT state FROM weir.stat_throttle') eq 'idle' });
poll_until('the standby has caught up', sub { $admin->value($lag_s) < 0.5 });

no_warnings($_, 'no warning in the log of the ' . $_->name) foreach $primary, $standby;

done_testing();
