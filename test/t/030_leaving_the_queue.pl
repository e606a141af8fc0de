# Every way out of the queue, and out of a slot: at once, counted under its own name, and nothing is left behind.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node('leaving', deadlock_timeout => '200ms', restart_after_crash => 'on');
my $admin = admin_of($node);
my $holder = app_of($node);

my @departures = qw(refused timed_out cancelled statement_timeout terminated client_gone);

sub departures
{
	return $admin->query('SELECT ' . join(', ', @departures) . ' FROM weir.stat_admission')->[0];
}

# Sends $sql on new connections, one behind the other.
sub queue_up
{
	my ($count, $sql) = @_;
	my $before = admission($admin, 'waiting');
	my @sessions;
	foreach my $i (1 .. $count)
	{
		push @sessions, app_of($node);
		$sessions[-1]->send($sql // 'SELECT 1');
		wait_for_waiting($admin, $before + $i);
	}
	return @sessions;
}

# A test: of three waiters the middle one leaves by $leave, at once; it is counted as $counter and in the histogram of
# waits; the other two move up, and a new one takes the last place.
sub leaves
{
	my ($counter, $sqlstate, $leave, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $name = $options{name} // $counter;

	$admin->query('SELECT weir.reset()');
	$holder->query('BEGIN');
	my ($first) = queue_up(1);
	my ($leaver) = $options{leaver} ? $options{leaver}->() : queue_up(1);
	wait_for_waiting($admin, 2);
	my ($last) = queue_up(1);

	my $began = Time::HiRes::time();
	$leave->($leaver);
	wait_for_waiting($admin, 2);
	my $took_s = Time::HiRes::time() - $began;
	cmp_ok($took_s, '<', $PgWeir::at_once_s + ($options{after_s} // 0), "$name: it leaves at once");
	if ($sqlstate ne '')
	{
		my $answer = $leaver->answer;
		is($answer && $answer->{code}, $sqlstate, "$name: SQLSTATE");
	}
	is_deeply(departures(), [ map { $_ eq $counter ? 1 : 0 } @departures ], "$name: counted as $counter alone");
	isnt(admission($admin, 'wait_max'), '', "$name: in the histogram of waits, though unserved");

	my ($new) = queue_up(1);
	is($admin->value("SELECT string_agg(concat_ws(' ', pid, position), ', ' ORDER BY position)
			FROM weir.activity WHERE state = 'waiting'"),
		join(', ', map { [ $first, $last, $new ]->[$_]->pid . " $_" } 0 .. 2),
		"$name: those behind move up, its place is reused");
	$holder->query('COMMIT');
	is(join(' ', map { $_->answer->{code} } $first, $last, $new), '  ', "$name: all others are served");
	$_->close foreach $first, $last, $new;
	if ($options{survives})
	{
		is($leaver->value('SELECT 1'), 1, "$name: the session goes on");
		$leaver->close;
	}
	return nothing_left($admin, $name);
}

# ---- out of the queue

leaves(
	'cancelled', '57014',
	sub { $admin->query('SELECT pg_cancel_backend(' . $_[0]->pid . ')') },
	survives => 1);
leaves('terminated', '57P01', sub { $admin->query('SELECT pg_terminate_backend(' . $_[0]->pid . ')') });
leaves(
	'statement_timeout',
	'57014',
	sub { },
	leaver => sub {
		my $session = app_of($node);
		$session->query("SET statement_timeout = '1500ms'");
		return $session->send('SELECT 1');
	},
	after_s => 1.5,
	survives => 1);
leaves('client_gone', '', sub { $_[0]->vanish });
leaves('client_gone', '', sub { $_[0]->vanish }, name => 'client gone at BEGIN', leaver => sub { queue_up(1, 'BEGIN') });

# A real client, killed. Nothing but its socket tells: the server's own check of connections is off.
is($admin->value('SHOW client_connection_check_interval'), '0', 'the server does not look after its clients');
leaves(
	'client_gone',
	'',
	sub { $_[0]->signal('KILL'); $_[0]->finish },
	name => 'psql killed',
	leaver => sub {
		return IPC::Run::start([ 'psql', '-X', '-c', 'SELECT 1', '-d', $node->connstr('postgres') . ' user=app' ],
			'<', \undef, '>', \my $out, '2>', \my $err);
	});

# It alone is of a class that times out soon.
$admin->query('CREATE ROLE hasty LOGIN');
$admin->query("ALTER ROLE hasty SET weir.class = 'hasty'");
reconfigure($admin, 'weir.classes' => 'hasty: queue_timeout=1500ms');
leaves(
	'timed_out',
	'53300',
	sub { },
	leaver => sub { return app_of($node, user => 'hasty')->send('SELECT 1') },
	name => 'queue_timeout',
	after_s => 1.5,
	survives => 1);
reconfigure($admin, 'weir.classes' => '');

# ---- out of a slot

foreach my $way (
	[ 'pg_terminate_backend of a slot holder', sub { $admin->query('SELECT pg_terminate_backend(' . $holder->pid . ')') } ],
	[ 'a slot holder whose client is gone', sub { $holder->vanish } ],
	[
		'idle_in_transaction_session_timeout',
		sub { poll_until('the session ends', sub { $holder->answered }) }
	])
{
	my ($name, $end) = @$way;
	$holder->query("SET idle_in_transaction_session_timeout = '1500ms'") if $name =~ /timeout/;
	$holder->query('BEGIN');
	my ($next) = queue_up(1);
	$end->();
	my $answer = $next->answer($PgWeir::at_once_s);
	is($answer && $answer->{code}, '', "$name: the next one runs");
	nothing_left($admin, $name);
	$next->close;
	$holder = app_of($node);
}

# Within a utility statement the end of its transactions does not give the slot back; the end of the process must.
$holder->send('DO $$BEGIN PERFORM pg_sleep(1000); END$$');
poll_until('it has the slot', sub { $holder->state($admin) eq 'active' });
my ($next) = queue_up(1);
$admin->query('SELECT pg_terminate_backend(' . $holder->pid . ')');
my $served = $next->answer($PgWeir::at_once_s);
is($served && $served->{code}, '', 'pg_terminate_backend of a slot holder in a DO: the next one runs');
nothing_left($admin, 'a terminated DO');
$next->close;
$holder = app_of($node);

# ---- a storm of all this at once: cancels and ends meet grants in every order

reconfigure($admin, 'weir.max_active' => 2, 'weir.idle_yield' => '1ms');
my $seed = srand;
note("seed $seed");
my @storm = map { app_of($node) } 1 .. 16;
my @statements = ('SELECT 1', 'BEGIN', 'COMMIT', 'ROLLBACK', 'SELECT 1/0', 'BEGIN; SELECT 1', 'DO $$BEGIN COMMIT; END$$', 'SELECT 1; COMMIT');
my $answers = 0;
foreach (1 .. 3000)
{
	my $i = int(rand(@storm));
	if ($storm[$i]->answered)
	{
		$answers++;
		$storm[$i]->answer;
	}
	my $dice = rand;
	if ($dice < 0.02 || !$storm[$i]->connected)
	{
		$storm[$i]->vanish;
		$storm[$i] = app_of($node);
	}
	elsif ($dice < 0.15) { $admin->query('SELECT pg_cancel_backend(' . $storm[$i]->pid . ')') }
	elsif ($dice < 0.17) { $admin->query('SELECT pg_terminate_backend(' . $storm[$i]->pid . ')') }
	else { $storm[$i]->send($statements[ int(rand(@statements)) ]) }
}
$_->close foreach @storm;
cmp_ok($answers, '>', 100, "a storm: $answers answers");
nothing_left($admin, 'a storm');
note(join ' ', map { $_ // '' } @{ $admin->query('SELECT admitted, queued, cancelled, terminated, client_gone, lendings FROM weir.stat_admission')->[0] });
reconfigure($admin, 'weir.max_active' => 1, 'weir.idle_yield' => -1);

# ---- the launcher ends while ten wait

my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir launcher'};
my $old_pid = $admin->value($launcher);
$holder->query('BEGIN');
my @waiters = queue_up(10, 'BEGIN');
$admin->query("SELECT pg_terminate_backend($old_pid)");
poll_until('the launcher is gone', sub { $admin->value($launcher) ne $old_pid });
my ($eleventh) = queue_up(1, 'BEGIN');
$holder->query('COMMIT');
is($waiters[0]->answer->{tag}, 'BEGIN', 'without the launcher a slot is handed to the next');
is($admin->value("SELECT concat_ws(' ', active, waiting) FROM weir.stat_admission"), '1 10', 'and to nobody else');
note('launcher meanwhile: ', $admin->value($launcher) || 'none');
# The postmaster of PostgreSQL 15 can miss the death of a worker just before it sleeps, for a minute at most: a connection wakes it.
my $took_s = poll_until('a new launcher', sub { admin_of($node)->close; $admin->value($launcher) ne '' });
isnt($admin->value($launcher), $old_pid, "the launcher comes back, after $took_s s");
is($admin->value("SELECT concat_ws(' ', active, waiting) FROM weir.stat_admission"), '1 10', 'the limit was in force meanwhile');

# The new one lends: each of these is silent once it has its slot.
reconfigure($admin, 'weir.idle_yield' => '5ms');
is($_->answer->{tag}, 'BEGIN', 'it lends slots') foreach @waiters[ 1 .. 9 ], $eleventh;
$_->query('COMMIT') foreach @waiters, $eleventh;
reconfigure($admin, 'weir.idle_yield' => -1);
nothing_left($admin, 'the launcher came back');

# And rescues.
my $blocker = $waiters[0];
$blocker->query('SELECT pg_advisory_lock(1)');
$holder->query('BEGIN');
$blocker->send('BEGIN');
wait_for_waiting($admin, 1);
$holder->send('SELECT pg_advisory_xact_lock(1)');
is($blocker->answer->{tag}, 'BEGIN', 'it resolves a hidden deadlock');
$blocker->query($_) foreach 'SELECT pg_advisory_unlock(1)', 'COMMIT';
is($holder->answer->{code}, '', 'and the slot holder goes on');
$holder->query('COMMIT');
$_->close foreach @waiters, $eleventh;
nothing_left($admin, 'the new launcher');

# ---- a launcher that does not come back: stopped, while it holds nothing

$holder->query('BEGIN');
poll_until('the launcher sleeps', sub { $admin->value("SELECT wait_event FROM pg_stat_activity WHERE pid = (" . $launcher . ")") ne '' });
my $stopped = $admin->value($launcher);
my $log = -s $node->logfile;
kill 'STOP', $stopped;
@waiters = map { app_of($node) } 1 .. 2;
$_->send('SELECT 1') foreach @waiters;
is(join(' ', map { my $answer = $_->answer; $answer ? $answer->{code} : 'no answer' } @waiters),
	' ', 'nobody minds the queue: the limit does not bind');
is(scalar(() = slurp_file($node->logfile, $log) =~ /LOG:  pg_weir: no launcher minds the queue/g), 1, 'and that is logged once');
kill 'CONT', $stopped;
$holder->query('COMMIT');
nothing_left($admin, 'a launcher that was stopped');

# ---- kill -9, and the restart after the crash; shutdowns

# A test: the server is as new, and the gate is in force.
sub is_as_new
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_until("$name: the server is back", sub { $admin = eval { admin_of($node) } });
	is( $admin->value(
			"SELECT concat_ws(' ', mode, limit_now, active, waiting, lent, admitted, queued) FROM weir.stat_admission"),
		'enforce 1 0 0 0 0 0',
		"$name: counters are zero");
	$holder = app_of($node);
	$holder->query('BEGIN');
	my ($next) = queue_up(1);
	is(admission($admin, 'active'), 1, "$name: the gate is in force");
	$holder->query('COMMIT');
	is($next->answer->{code}, '', "$name: a slot is handed on");
	$next->close;
	return nothing_left($admin, $name);
}

foreach my $victim (qw(holder waiter))
{
	$holder->query('BEGIN');
	@waiters = queue_up(3);
	kill 'KILL', ($victim eq 'holder' ? $holder : $waiters[1])->pid;
	ok($waiters[0]->answer->{closed}, "kill -9 of a $victim: the server restarts");
	poll_until('the old sessions are gone', sub { $admin->answered });
	is_as_new("kill -9 of a $victim");
}

foreach my $mode (qw(immediate fast))
{
	$holder->query('BEGIN');
	@waiters = queue_up(3);
	$node->stop($mode);
	is(join(' ', map { $_->answer->{code} } @waiters), '57P01 57P01 57P01', "$mode shutdown: the waiters end")
	  if $mode eq 'fast';
	$node->start;
	is_as_new("$mode shutdown");
}

done_testing();
