# What may happen while connections wait for their startup: a standby is promoted, settings change, a backend is killed, the
# server is shut down. Nobody is lost who need not be, and nothing is left. And that who waits holds no snapshot.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'storm',
	node => { allows_streaming => 1 },
	'weir.max_startups' => 1,
	'weir.max_active' => 0,
	'max_connections' => 560,
	'weir.startup_queue_size' => 520,
	'restart_after_crash' => 'on',
	'weir.startup_timeout' => '60s',
	'authentication_timeout' => '120s');
my ($admin, $locker) = map { admin_of($node) } 1, 2;
$admin->query("CREATE ROLE guesser LOGIN PASSWORD 'x'");

# ---- settings that change in a storm of a hundred

{
	my $free = occupy_startup($node, $admin, $locker);
	my @waiters = queue_startups($node, $admin, 100);
	reconfigure($admin, 'weir.max_startups' => 101);
	all_served('max_startups raised', @waiters);
	reconfigure($admin, 'weir.max_startups' => 1);
	@waiters = queue_startups($node, $admin, 100);
	reconfigure($admin, 'weir.max_startups' => -1);
	all_served('max_startups made adaptive', @waiters);
	reconfigure($admin, 'weir.max_startups' => 1);
	@waiters = queue_startups($node, $admin, 100);
	reconfigure($admin, 'weir.mode' => 'off');
	all_served('switched off', @waiters);
	reconfigure($admin, 'weir.mode' => 'enforce');
	@waiters = queue_startups($node, $admin, 50);
	reconfigure($admin, 'weir.mode' => 'observe');
	all_served('observed from now on', @waiters);
	reconfigure($admin, 'weir.mode' => 'enforce');
	is($free->()->{code}, '', 'the holder, too');
	no_startups_left($admin, 'changes of a limit');
}

{
	reconfigure($admin, 'weir.max_startups' => 0, 'weir.startup_rate' => 1, 'weir.startup_burst' => 1);
	app_of($node)->close;
	my @waiters = map { app_of($node, async => 1) } 1 .. 60;
	poll_until('they wait', sub { startups_waiting($admin) >= 50 });
	reconfigure($admin, 'weir.startup_rate' => 1000);
	all_served('startup_rate raised', @waiters);
	reconfigure($admin, 'weir.startup_rate' => 1);
	app_of($node)->close;
	@waiters = map { app_of($node, async => 1) } 1 .. 60;
	poll_until('they wait', sub { startups_waiting($admin) >= 50 });
	reconfigure($admin, 'weir.startup_rate' => 0);
	all_served('startup_rate taken away', @waiters);
	reconfigure($admin, 'weir.max_startups' => 1);
	no_startups_left($admin, 'changes of a rate');
}

# A class that is taken away while connections of it wait lives on, without its limits, until they are served.
{
	reconfigure($admin,
		'weir.max_startups' => 0,
		'weir.classes' => 'jobs: max_startups=1',
		'weir.class_map' => 'application_name=job => jobs');
	$locker->query('BEGIN');
	$locker->query('ALTER DATABASE shop RENAME TO shop_renamed');
	my $holder = app_of($node, database => 'shop', application_name => 'job', async => 1);
	poll_until('it starts', sub { startup_value($admin, 'starting', 'jobs') == 1 });
	my @waiters = queue_startups($node, $admin, 20, application_name => 'job');
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '', 'weir.max_startups' => 1);
	$locker->query('ROLLBACK');
	all_served('their class is taken away', $holder, @waiters);
	no_startups_left($admin, 'a class that is gone');
}

# The answer to a wrong password that is held back is given when nothing is to be held back any more.
{
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $trust = slurp_file($hba);
	unlink $hba;
	append_to_file($hba, "local all guesser password\n$trust");
	foreach my $change ([ 'weir.mode' => 'off' ], [ 'weir.failed_login_rate' => 0 ])
	{
		reconfigure($admin, 'weir.failed_login_rate' => 1, 'weir.mode' => 'enforce');
		my @guesses = map { app_of($node, user => 'guesser', password => 'y', async => 1) } 1 .. 8;
		poll_until('they are held', sub { $_->answered foreach @guesses; $admin->value(q{SELECT count(*) FROM weir.activity WHERE state = 'held'}) >= 6 });
		reconfigure($admin, @$change);
		is(join(' ', map { my $answer = $_->answer($PgWeir::at_once_s); $answer ? $answer->{code} : 'none' } @guesses),
			join(' ', ('28P01') x 8), "@$change: failed logins are answered at once");
	}
	reconfigure($admin, 'weir.mode' => 'enforce');
	no_startups_left($admin, 'held answers');
}

# ---- a standby that is promoted while connections wait on it

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('storm_standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "hot_standby_feedback = on\nwal_receiver_status_interval = 1s");
$standby->start;
my ($standby_admin, $spare) = map { admin_of($standby) } 1, 2;
poll_until('the launcher has set the limit', sub { $standby_admin->value('SELECT max_startups FROM weir.startup_limit') eq '1' });

# What a login waits for after the gate: on the standby the lock is held by recovery.
sub lock_on_primary
{
	$locker->query('BEGIN');
	$locker->query('LOCK pg_db_role_setting');
	$locker->query('SELECT pg_switch_wal()');
	return poll_until('the lock is replayed',
		sub { $standby_admin->value(q{SELECT count(*) FROM pg_locks WHERE relation = 'pg_db_role_setting'::regclass AND mode = 'AccessExclusiveLock'}) == 1 });
}

sub start_on_standby
{
	my $holder = app_of($standby, async => 1);
	wait_for_startups($standby_admin, 1, 0);
	my @waiters = queue_startups($standby, $standby_admin, 20);
	return ($holder, @waiters);
}

{
	lock_on_primary();
	my ($holder, @waiters) = start_on_standby();
	is($standby_admin->value(q{SELECT pg_is_in_recovery()}), 't', 'in recovery, twenty wait');
	$locker->query('ROLLBACK');
	all_served('the lock is gone in recovery', $holder, @waiters);
	no_startups_left($standby_admin, 'in recovery');
}

# Who waits holds no snapshot. On a standby one would hold back the primary's vacuum.
{
	reconfigure($standby_admin, 'weir.max_startups' => 0, 'weir.startup_rate' => 1, 'weir.startup_burst' => 1);
	my $first = app_of($standby);
	my @waiters = queue_startups($standby, $standby_admin, 20);
	$admin->query('CREATE TABLE IF NOT EXISTS consumed (i int)');
	my $xid = $admin->value('INSERT INTO consumed VALUES (1) RETURNING txid_current()');
	poll_until('the xmin of the standby goes on, or all are served',
		sub { $waiters[-1]->answered || $admin->value("SELECT backend_xmin::text::bigint > $xid FROM pg_stat_replication") eq 't' });
	is($waiters[-1]->answered, '', 'hot_standby_feedback: who waits does not hold back the xmin');
	reconfigure($standby_admin, 'weir.startup_rate' => 0, 'weir.max_startups' => 1);
	all_served('after that', @waiters);
	$first->close;
	no_startups_left($standby_admin, 'feedback');
}

{
	lock_on_primary();
	my ($holder, @waiters) = start_on_standby();
	# It would go on as soon as recovery ends. So that all wait beyond that, it is stopped.
	my $pid = $standby_admin->value(q{SELECT pid FROM weir.activity WHERE state = 'starting'});
	kill 'STOP', $pid;
	$standby->promote;
	$standby_admin->query('CREATE TABLE written (i int)');
	is($standby_admin->value(q{SELECT concat_ws(' ', starting, waiting) FROM weir.startup_limit}), '1 20', 'promoted: all keep their places');
	is(scalar(grep { $_->answered } @waiters), 0, 'and wait');
	$waiters[3]->vanish;
	poll_until('one has left', sub { startups_waiting($standby_admin) == 19 });
	splice @waiters, 3, 1;
	my ($late) = queue_startups($standby, $standby_admin, 1);
	kill 'CONT', $pid;
	all_served('promoted', $holder, @waiters);
	is($late->answer->{code}, '', 'and one that came after it');
	$late->query('CREATE TABLE public.written_by_app (i int)');
	$late->close;
	no_startups_left($standby_admin, 'promoted');
	$locker->query('ROLLBACK');
}

# It is a primary like any other: the limit is in force, and a reload reaches who waits.
{
	my $free = occupy_startup($standby, $standby_admin, $spare);
	my @waiters = queue_startups($standby, $standby_admin, 20);
	reconfigure($standby_admin, 'weir.max_startups' => 30);
	all_served('after promotion', @waiters);
	$free->();
	no_startups_left($standby_admin, 'after promotion');
}
no_warnings($standby, 'no warning in the log of the standby');
$standby->stop;

# ---- a backend is killed while five hundred wait

{
	my $free = occupy_startup($node, $admin, $locker);
	my @waiters = map { app_of($node, async => 1) } 1 .. 500;
	poll_until('500 wait', sub { startups_waiting($admin) == 500 });
	kill 'KILL', $admin->value(q{SELECT pid FROM weir.activity WHERE state = 'starting'});
	poll_until('all are disconnected', sub { $admin->answered; !$admin->connected });
	poll_until('the server comes back', sub { $admin = eval { admin_of($node) } });
	no_startups_left($admin, 'crash restart');
	is(scalar(grep { my $answer = $_->answer; $answer && $answer->{closed} } @waiters), 500, 'all who waited were disconnected');
	is(app_of($node)->value('SELECT 1'), 1, 'and everybody may come');
	$locker = admin_of($node);
}

# ---- shutdown

{
	my $free = occupy_startup($node, $admin, $locker);
	my @waiters = queue_startups($node, $admin, 50);
	poll_until('it is stopped', sub { $node->stop('fast'); 1 });
	is(scalar(grep { my $answer = $_->answer; $answer && $answer->{closed} } @waiters), 50, 'a fast shutdown ends those who wait');
	$node->start;
	($admin, $locker) = map { admin_of($node) } 1, 2;
	no_startups_left($admin, 'shutdown');
}
{
	my $free = occupy_startup($node, $admin, $locker);
	my ($waiter) = queue_startups($node, $admin, 1);
	kill 'TERM', slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	poll_until('nobody comes in any more', sub { !eval { admin_of($node) } });
	$free->();
	is($waiter->answer->{code}, '', 'a smart shutdown lets those in who had come');
	is($waiter->value('SELECT 1'), 1, 'and work');
	$_->close foreach $waiter, $admin, $locker;
	poll_until('the server ends', sub { !-e $node->data_dir . '/postmaster.pid' });
	$node->_update_pid(0);
}

unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|WARNING:  (?!terminating)/, 'no complaint in the log');
done_testing();
