# Connections at the gate: who waits, who never does, how each leaves, and that nothing stays behind.
#
# A login that holds its startup slot for as long as a test wants: its database is being renamed in a transaction that is
# open, and InitPostgres waits for that.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node(
	'connections',
	node => { allows_streaming => 1 },
	'weir.max_startups' => 1,
	'weir.max_active' => 0,
	'max_connections' => 40,
	'authentication_timeout' => '60s',
	'log_connections' => 'on',
	'restart_after_crash' => 'on');
my $admin = admin_of($node);
my $locker = admin_of($node);    # holds a transaction open while $admin looks on
$admin->query($_)
  foreach "CREATE ROLE late LOGIN PASSWORD 'x'", 'CREATE ROLE boss LOGIN SUPERUSER',
  'CREATE ROLE copyist LOGIN REPLICATION';

# What PgWeir has for connections, of this node.
sub startup { return startup_value($admin, @_) }
sub startup_waiting { return startups_waiting($admin) }
sub occupy_slot { return occupy_startup($node, $admin, $locker) }
sub connect_waiting { return queue_startups($node, $admin, @_) }
sub nobody_starts { return no_startups_left($admin, @_) }

# The answer to the first login that is refused, of some that come one after the other.
sub refused_of_some
{
	my $answer;
	for (1 .. 10)
	{
		my $session = app_of($node, async => 1);
		$answer = $session->answer;
		$session->close;
		last if $answer->{code} ne '';
	}
	return $answer;
}

# ---- first come, first served

{
	my $free = occupy_slot();
	my @waiters = connect_waiting(3, application_name => 'patient');
	is($admin->value("SELECT string_agg(concat_ws(' ', role, database, application, state, position), '; ' ORDER BY position)
			FROM weir.activity WHERE state = 'waiting to start'"),
		join('; ', map { "app postgres patient waiting to start $_" } 0 .. 2), 'weir.activity shows who waits');
	is($admin->value("SELECT string_agg(state || ' ' || database, ',') FROM weir.activity WHERE state = 'starting'"),
		'starting shop', 'and who starts');
	is($admin->value("SELECT string_agg(DISTINCT concat_ws(' ', coalesce(address::text, 'local'), now() - since < '1 min'), '; ') FROM weir.activity
			WHERE state = 'waiting to start'"), 'local t', 'from where, and since when');
	ok(!$waiters[0]->answered, 'they wait');
	is($free->()->{code}, '', 'the holder is served');
	all_served('then all others', @waiters);
	nobody_starts('served');
	is(startup('queued'), 3, 'three had to wait');
	isnt(startup('wait_max'), '', 'and are in the histogram');
}

# A session that runs holds no startup slot.
{
	my @sessions = map { app_of($node) } 1 .. 5;
	nobody_starts('five sessions');
	$_->close foreach @sessions;
}

# ---- who never waits

{
	my $free = occupy_slot();
	my ($waiter) = connect_waiting(1);
	my $began = Time::HiRes::time();
	my $boss = app_of($node, user => 'boss');
	is($boss->value('SELECT 1'), 1, 'a superuser comes in');
	cmp_ok(Time::HiRes::time() - $began, '<', $PgWeir::at_once_s, 'at once');
	$boss->close;
	$node->command_ok(
		[ 'pg_receivewal', '-d', $node->connstr('postgres') . ' user=copyist replication=true', '--create-slot', '-S', 's1' ],
		'replication comes in');
	is(startup('bypassed') >= 2, 1, 'both are counted');
	ok(!$waiter->answered, 'the ordinary one waits on');
	$free->();
	is($waiter->answer->{code}, '', 'and is served');
	$waiter->close;
	nobody_starts('bypass');
}

# ---- ways out of the queue

{
	my $free = occupy_slot();
	my ($first, $leaver, $last) = connect_waiting(3);
	$leaver->vanish;
	happens_within(1, 'a client that went away frees its place', sub { startup_waiting() == 2 });
	is(startup('client_gone'), 1, 'counted as client_gone');

	my $pid = $admin->value("SELECT pid FROM weir.activity WHERE state = 'waiting to start' AND position = 1");
	$admin->query("SELECT pg_terminate_backend($pid)");
	ok($last->answer->{closed}, 'pg_terminate_backend ends a waiter');
	poll_until('it has left', sub { startup_waiting() == 1 });
	is(startup('terminated'), 1, 'counted as terminated');

	$free->();
	is($first->answer->{code}, '', 'the one that stayed is served');
	$first->close;
	nobody_starts('leaving');
}

{
	reconfigure($admin, 'weir.startup_queue_size' => 2);
	my $free = occupy_slot();
	my @waiters = connect_waiting(2);
	my $answer = app_of($node, async => 1)->answer;
	is($answer->{severity}, 'FATAL', 'queue full: FATAL');
	is_refused($answer, qr/^Waiting: 2, weir\.startup_queue_size is 2; class "default"\.$/, 'queue full');
	is(startup('refused'), 1, 'counted as refused');
	reconfigure($admin, 'weir.startup_sqlstate' => '57P03');
	is(app_of($node, async => 1)->answer->{code}, '57P03', 'weir.startup_sqlstate');

	reconfigure($admin, 'weir.startup_timeout' => '300ms', 'weir.startup_sqlstate' => '53300');
	my @answers = map { $_->answer } @waiters;
	is_refused($_, qr/Connections that start: 1, the limit is 1 \(weir\.max_startups\); waiting: \d+/, 'a timeout lowered while they wait')
	  foreach @answers;
	is(startup('timed_out'), 2, 'counted as timed_out');
	$free->();
	reconfigure($admin, 'weir.startup_timeout' => '30s', 'weir.startup_queue_size' => 0);
	nobody_starts('refusals');
}

# The retry delay grows with the queue: one client after the other is refused while thirty are served, ten a second.
{
	reconfigure($admin, 'weir.max_startups' => 0, 'weir.startup_rate' => 10, 'weir.startup_burst' => 1, 'weir.startup_queue_size' => 30);
	my @waiters = map { app_of($node, async => 1) } 1 .. 30;
	poll_until('they wait', sub { startup_waiting() >= 25 });
	poll_until('the pace is known', sub { $admin->value('SELECT throughput BETWEEN 5 AND 15 FROM weir.startup_limit') eq 't' });
	reconfigure($admin, 'weir.startup_queue_size' => 1);
	my (@long, @short, $answer);
	for (my $before = 0; startup_waiting() > 0; $before = startup_waiting())
	{
		poll_until('one more is served', sub { startup_waiting() != $before });
		$answer = app_of($node, async => 1)->answer;
		last if $answer->{code} eq '';
		my ($waiting) = $answer->{detail} =~ /^Waiting: (\d+)/;
		my ($delay) = $answer->{hint} =~ /([0-9.]+) s/;
		push @long, $delay if $waiting >= 12;
		push @short, $delay if $waiting <= 4;
	}
	my ($long, $short) = map { my $sum = 0; $sum += $_ foreach @$_; @$_ ? $sum / @$_ : -1 } \(@long, @short);
	note("behind twelve and more: @long; behind four and fewer: @short");
	ok($short >= 0.1 && $long > $short, "the retry delay: $long s behind many, $short s behind few");
	$_->answer foreach @waiters;
	$_->close foreach @waiters;
	reconfigure($admin, 'weir.max_startups' => 1, 'weir.startup_rate' => 0, 'weir.startup_burst' => 0, 'weir.startup_queue_size' => 0);
	nobody_starts('retry delays');
}

# Who is refused is told which rate held him.
foreach my $max (0, -1)
{
	reconfigure($admin, 'weir.max_startups' => $max, 'weir.startup_rate' => 1, 'weir.startup_burst' => 1, 'weir.startup_timeout' => '100ms');
	poll_until('the rate is known', sub { $admin->value('SELECT NOT adaptive AND rate = 1 FROM weir.startup_limit') eq 't' });
	is_refused(refused_of_some(), qr/^1\.0 connections a second are started \(weir\.startup_rate\); waiting: /, "weir.max_startups = $max, with a rate");
}
reconfigure($admin, 'weir.max_startups' => 1, 'weir.startup_rate' => 0, 'weir.startup_burst' => 0, 'weir.startup_timeout' => '30s');
nobody_starts('rates');

# ---- authentication_timeout ends later than the wait, and the client hears why

{
	reconfigure($admin, 'authentication_timeout' => '2s', 'weir.startup_timeout' => '30s');
	my $free = occupy_slot();
	my $log = -s $node->logfile;
	my $began = Time::HiRes::time();
	my $answer = app_of($node, async => 1)->answer;
	is($answer->{code}, '53300', 'authentication_timeout: a refusal of ours');
	cmp_ok(Time::HiRes::time() - $began, '<', 2, 'before it');
	unlike(slurp_file($node->logfile, $log), qr/canceling authentication due to timeout/, 'which did not come');
	$free->();
	reconfigure($admin, 'authentication_timeout' => '60s');
	nobody_starts('authentication_timeout');
}

# ---- a login that is stuck

{
	my $free = occupy_slot();
	my ($waiter) = connect_waiting(1);
	reconfigure($admin, 'weir.stall_timeout' => '100ms');
	is($waiter->answer->{code}, '', 'its slot is lent to who waits');
	is(startup('lendings'), 1, 'which is counted');
	is($admin->value("SELECT count(*) FROM weir.activity WHERE database = 'shop'"), 1, 'it is shown');
	$waiter->close;
	reconfigure($admin, 'weir.stall_timeout' => 0);
	is($free->()->{code}, '', 'it is served, too');
	nobody_starts('a stuck login');
}

# ---- reload while they wait

{
	my $free = occupy_slot();
	my @waiters = connect_waiting(3);
	reconfigure($admin, 'weir.max_startups' => 3);
	all_served('the limit raised', @waiters);
	reconfigure($admin, 'weir.max_startups' => 1);
	@waiters = connect_waiting(3);
	reconfigure($admin, 'weir.mode' => 'off');
	all_served('switched off', @waiters);
	reconfigure($admin, 'weir.mode' => 'observe');
	my $before = startup('queued');
	app_of($node)->close;
	is(startup('queued'), $before + 1, 'observe: it is counted, and not held up');
	reconfigure($admin, 'weir.mode' => 'enforce');
	$free->();
	nobody_starts('reload');
}

# ---- classes

{
	reconfigure($admin,
		'weir.max_startups' => 0,
		'weir.classes' => 'web: weight=4; jobs: max_startups=1',
		'weir.class_map' => 'application_name=job* => jobs; role=app => web');
	$locker->query('BEGIN');
	$locker->query('ALTER DATABASE shop RENAME TO shop_renamed');
	my $holder = app_of($node, database => 'shop', application_name => 'job1', async => 1);
	poll_until('it starts', sub { startup('starting', 'jobs') == 1 });
	my ($waiter) = connect_waiting(1, application_name => 'job2');
	my $web = app_of($node);
	is($web->value('SELECT 1'), 1, 'another class is not held up');
	is(startup('admitted', 'web'), 1, 'it is counted in its own');
	is(startup('waiting', 'jobs'), 1, 'the full one waits');
	$locker->query('ROLLBACK');
	is($_->answer->{code}, '', 'served') foreach $holder, $waiter;
	$_->close foreach $holder, $waiter, $web;
	nobody_starts('classes');

	# A rate: the burst at once, the others one by one. With a minute between two nobody is served by accident.
	reconfigure($admin, 'weir.classes' => 'web: startup_rate=1 startup_burst=3');
	my @in = map { app_of($node) } 1 .. 3;
	my ($late) = connect_waiting(1);
	ok(!$late->answered, 'the fourth waits for its turn');
	is($late->answer->{code}, '', 'which comes');
	$_->close foreach @in, $late;
	reconfigure($admin, 'weir.startup_timeout' => '100ms');
	is_refused(refused_of_some(), qr/^Class "web" starts 1\.0 connections a second \(its startup_rate\); waiting in it: /, 'a rate of the class');
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '', 'weir.max_startups' => 1, 'weir.startup_timeout' => '30s');
	nobody_starts('rates');
}

# A class that is slower than the others has its own retry delay.
{
	reconfigure($admin,
		'weir.max_startups' => 0,
		'weir.startup_queue_size' => 30,
		'weir.classes' => 'slow: startup_rate=1 startup_burst=1',
		'weir.class_map' => 'application_name=slow => slow');
	my @waiters = map { app_of($node, application_name => 'slow', async => 1) } 1 .. 28;
	poll_until('they wait', sub { startup_waiting() >= 20 });
	poll_until('the others are served at ten times its pace',
		sub { app_of($node)->close; $admin->value('SELECT throughput > 10 FROM weir.startup_limit') eq 't' });
	reconfigure($admin, 'weir.startup_queue_size' => 1);
	my $answer = app_of($node, application_name => 'slow', async => 1)->answer;
	my ($ahead) = $answer->{detail} =~ /^Waiting: (\d+)/;
	my ($delay) = $answer->{hint} =~ /([0-9.]+) s/;
	cmp_ok($delay, '>', ($ahead + 1) / 2 - 0.1, "the retry delay behind $ahead of them, one a second, with its jitter");
	$_->vanish foreach @waiters;
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '', 'weir.max_startups' => 1, 'weir.startup_queue_size' => 0);
	nobody_starts('a slow class');
}

# Weights: three of the heavy class for one of the light one, whoever came first. One starts at a time, so they are logged in
# their order.
{
	reconfigure($admin,
		'weir.classes' => 'heavy: weight=3; light: weight=1',
		'weir.class_map' => 'application_name=heavy => heavy; application_name=light => light',
		'weir.log_min_startup_wait' => 0);
	my $log = -s $node->logfile;
	my $free = occupy_slot();
	my @waiters = map { connect_waiting(6, application_name => $_) } qw(light heavy);
	$free->();
	all_served('weights', @waiters);
	my @order = slurp_file($node->logfile, $log) =~ /DETAIL:  user=app database=postgres host=local application_name=(heavy|light)$/mg;
	note("@order");
	is(scalar(grep { $_ eq 'heavy' } @order[ 0 .. 7 ]), 6, 'six heavy ones are among the first eight');
	isnt(join(' ', @order[ 0 .. 5 ]), join(' ', ('heavy') x 6), 'and not all of them before the first light one');
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '', 'weir.log_min_startup_wait' => -1);
	nobody_starts('weights');
}

# ---- logins that fail

{
	my $answer = app_of($node, user => 'nobody_at_all', async => 1)->answer;
	is($answer->{code}, '28000', 'trust, and no such role: the server refuses it');
	nobody_starts('no such role');
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $trust = slurp_file($hba);
	open my $file, '>', $hba or die $!;
	print $file "local all late password\nlocal all banned reject\n$trust";
	close $file;
	reconfigure($admin, 'weir.failed_login_rate' => 0);
	$admin->query('SELECT weir.reset()');
	is(app_of($node, user => 'banned', async => 1)->answer->{code}, '28000', 'rejected by pg_hba.conf');
	is(startup('admitted', 'failed_login'), 0, 'which the server does before it asks anybody');
	is(app_of($node, user => 'late', password => 'y', async => 1)->answer->{code}, '28P01', 'a wrong password');
	is(startup('admitted', 'failed_login'), 1, 'a failed login is a class of its own');
	is(startup('admitted'), 0, 'and in no other');

	my $free = occupy_slot();
	my ($failing) = connect_waiting(1, user => 'late', password => 'y');
	is(startup('waiting', 'failed_login'), 1, 'it waits for its turn like all others');
	$free->();
	is($failing->answer->{code}, '28P01', 'and hears then that it failed');

	reconfigure($admin, 'weir.failed_login_rate' => 1);
	my @guesses = map { app_of($node, user => 'late', password => 'y', async => 1) } 1 .. 3;
	poll_until('one is held', sub { $_->answered foreach @guesses; $admin->value("SELECT count(*) FROM weir.activity WHERE state = 'held'") > 0 });
	my $good = app_of($node);
	is($good->value('SELECT 1'), 1, 'others are not held');
	$good->close;
	is(join(' ', map { $_->answer->{code} } @guesses), '28P01 28P01 28P01', 'all hear that they failed');
	cmp_ok(startup('held', 'failed_login'), '>', 0, 'held ones are counted');
	reconfigure($admin, 'weir.failed_login_rate' => 0);
	nobody_starts('failed logins');
}

# ---- a storm is logged and kept

# After a restart, because those who had to wait in the ten seconds before it count among its arrivals.
{
	$node->restart;
	($admin, $locker) = map { admin_of($node) } 1, 2;
	my $log = -s $node->logfile;
	reconfigure($admin, 'weir.log_min_startup_wait' => 0);
	my $free = occupy_slot();
	my @waiters = connect_waiting(12, application_name => 'crowd');
	poll_until('a storm is seen', sub { $admin->value('SELECT count(*) FROM weir.storms WHERE ended IS NULL') == 1 });
	is($admin->value('SELECT peak_waiting FROM weir.storms WHERE ended IS NULL') >= 10, 1, 'with its peak');
	$free->();
	$_->answer foreach @waiters;
	$_->close foreach @waiters;
	poll_until('the storm is over', sub { $admin->value('SELECT count(*) FROM weir.storms WHERE ended IS NULL') == 0 });
	is($admin->value('SELECT arrivals, unserved FROM weir.storms LIMIT 1') . '/'
		  . $admin->value('SELECT unserved FROM weir.storms LIMIT 1'), '12/0', 'how many came, and left unserved');
	is($admin->value('SELECT roles FROM weir.storms LIMIT 1'), 'app (12)', 'who came: roles');
	is($admin->value('SELECT addresses FROM weir.storms LIMIT 1'), 'local (12)', 'addresses');
	is($admin->value('SELECT applications FROM weir.storms LIMIT 1'), 'crowd (12)', 'applications');
	my $text = slurp_file($node->logfile, $log);
	is(scalar(() = $text =~ /connection storm began/g), 1, 'one line when it begins');
	like($text, qr/connection storm ended after [0-9.]+ s: at most 12 waited at once/, 'one line when it ends');
	like($text, qr/Roles: app \(12\); addresses: local \(12\); applications: crowd \(12\)/, 'and who came');
	like($text, qr/connection waited [0-9.]+ ms for its startup/, 'weir.log_min_startup_wait');
	nobody_starts('storm');

	# Where few may wait, others are refused instead; and clients lose patience.
	reconfigure($admin, 'weir.startup_queue_size' => 2);
	$free = occupy_slot();
	my ($patient, $impatient) = connect_waiting(2, application_name => 'crowd');
	app_of($node, async => 1)->answer foreach 1 .. 8;
	poll_until('a storm is seen', sub { $admin->value('SELECT count(*) FROM weir.storms WHERE ended IS NULL') == 1 });
	$impatient->vanish;
	poll_until('one has left', sub { startup_waiting() == 1 });
	$free->();
	is($patient->answer->{code}, '', 'who may wait is served');
	$patient->close;
	$text = slurp_file($node->logfile, $log);
	like($text, qr/connection storm began: 2 connections wait for their startup, 8 left unserved/, 'refused ones make a storm, too');
	like($text, qr/connection waited [0-9.]+ ms for its startup, until its client went away\n.*DETAIL:  user=app database=postgres host=local application_name=crowd$/m,
		'who went away is logged');
	reconfigure($admin, 'weir.log_min_startup_wait' => -1, 'weir.startup_queue_size' => 0);
	nobody_starts('a storm of refusals');
}

# ---- every ordinary place taken

{
	reconfigure($admin, 'weir.startup_timeout' => '60s', 'authentication_timeout' => '120s');
	my $free = occupy_slot();
	my @waiters;
	my $answer;
	until ($answer)
	{
		push @waiters, app_of($node, async => 1);
		poll_until('it waits or is refused', sub { $waiters[-1]->answered || startup_waiting() == @waiters });
		$answer = $waiters[-1]->answer if $waiters[-1]->answered;
		last if @waiters > 60;
	}
	pop @waiters;
	is_refused($answer, qr/^Waiting: \d+, and nearly all of max_connections \(40\) is taken/, 'no place left');
	cmp_ok(scalar @waiters, '>', 25, scalar(@waiters) . ' of 40 places wait');
	my $boss = app_of($node, user => 'boss', async => 1);
	happens_within(1, 'a superuser comes in all the same', sub { $boss->answered });
	is($boss->answer->{code}, '', 'as one');
	is($boss->value('SELECT 1'), 1, 'and works');
	$boss->close;

	# A crash restart while they wait.
	my $victim = $admin->value("SELECT pid FROM weir.activity WHERE state = 'starting'");
	kill 'KILL', $victim;
	poll_until('all are disconnected', sub { $admin->answered; !$admin->connected });
	poll_until('the server comes back', sub { $admin = eval { admin_of($node) } });
	nobody_starts('crash restart');
	is(app_of($node)->value('SELECT 1'), 1, 'and everybody may come');
}

# ---- absurd startup packets

{
	foreach my $length (63, 64, 1000, 9000)
	{
		my $long = 'x' x $length;
		foreach my $what (qw(user database application_name))
		{
			my $session = eval { app_of($node, $what => $long, async => 1) };
			my $answer = $session && $session->answer;
			ok($answer, "$what of $length bytes: an answer") or next;
			$session->close;
		}
	}
	my $odd = app_of($node, user => "\xff\xfe\x01", async => 1)->answer;
	ok($odd && $odd->{code}, 'a name that is no text: an error');
	nobody_starts('absurd packets');
	ok(defined $admin->value('SELECT count(*) FROM weir.activity'), 'the views go on');
}

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|WARNING:  (?!terminating)/, 'no complaint in the log');
done_testing();
