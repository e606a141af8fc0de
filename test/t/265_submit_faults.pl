# Units with a key happen once, whoever is killed: clients that try again with the same key until they are told the outcome, through kills
# of workers, backends, the server; and on the synchronous standby after it was promoted.
#
# KILLS=8, SEED: what is killed, in which order and when

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use List::Util ();
use PgWeir;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $kills = $ENV{KILLS} // 8;
my $seed = $ENV{SEED} // time;
srand $seed;
note("SEED=$seed KILLS=$kills");

my $node = gated_node(
	'submit_faults',
	node => { allows_streaming => 1 },
	'weir.max_active' => 8,
	'max_connections' => 60,
	'restart_after_crash' => 'on',
	'fsync' => 'on',
	'max_worker_processes' => 16,
	'log_statement' => 'none');
my @nodes = ($node);
my $admin = admin_of($node);
$admin->query($_) foreach 'CREATE TABLE done (client int, n int CHECK (n > 0), PRIMARY KEY (client, n))',
  'CREATE TABLE counters (id int PRIMARY KEY, v int NOT NULL)', 'INSERT INTO counters SELECT g, 0 FROM generate_series(0, 3) g',
  'GRANT ALL ON done, counters TO app', 'GRANT EXECUTE ON FUNCTION weir.submit TO app';

# ---- the clients

my @clients = map { { number => $_, n => 1, session => undef, fails => 0 } } 1 .. 16;
my (%codes, @mistakes);
my ($acked, $tried_again) = (0, 0);

# Its next unit, or again the one that it does not know the outcome of. Now and then one that must fail, first.
sub send_next
{
	my ($client) = @_;
	$client->{fails} = !$client->{again} && rand() < 0.05;
	my ($number, $n) = ($client->{number}, $client->{fails} ? -1 : $client->{n});
	my $key = $client->{fails} ? 'NULL' : "'$number-$n'";
	$client->{session}->send(
		"SELECT weir.submit('INSERT INTO done VALUES (\$1, \$2); UPDATE counters SET v = v + 1 WHERE id = \$3',
			ARRAY['$number', '$n', '" . $n % 4 . "'], $key)");
	return;
}

# Whichever server takes writes. Returns whether there is one.
sub connect_client
{
	my ($client) = @_;
	foreach my $server (@nodes)
	{
		my $session = eval { app_of($server) } or next;
		$client->{session} = $session;
		return 1 if $session->value('SHOW transaction_read_only') eq 'off';
	}
	$client->{session} = undef;
	return 0;
}

sub take_answer
{
	my ($client) = @_;
	my $answer = $client->{session}->answer;
	my $code = !$answer || $answer->{closed} ? ($answer && $answer->{code} || 'closed') : $answer->{code};
	$client->{session} = undef if !$answer || $answer->{closed} || !$client->{session}->connected;
	$codes{ $code || 'ok' }++;
	if ($client->{fails})
	{
		push @mistakes, "failing unit: $code" unless $code =~ /^(23514|57...|40003|closed)$/;
		return;
	}
	if ($code)
	{
		push @mistakes, "$client->{number}-$client->{n}: $code $answer->{message}" unless $code =~ /^(57...|40003|closed)$/;
		$client->{again} = 1;
		$tried_again++;
		return;
	}
	my $rows = $answer->{rows}[0][0];
	push @mistakes, "$client->{number}-$client->{n}: $rows rows" unless $rows == 2;
	$client->{n}++;
	$client->{again} = 0;
	$acked++;
	return;
}

# They work until so many more units are acknowledged; `finish`: until no outcome is unknown, and they begin no more; `until`: until that.
sub work
{
	my ($more, %options) = @_;
	my ($goal, $until) = ($acked + $more, Time::HiRes::time() + $PgWeir::deadline_s);
	while ($options{until} ? !$options{until}->() : $options{finish} ? List::Util::any { $_->{waits} || $_->{again} } @clients : $acked < $goal)
	{
		die 'they do not get on: ' . join ', ', map { "$_ $codes{$_}" } sort keys %codes if Time::HiRes::time() > $until;
		my $moved = 0;
		foreach my $client (@clients)
		{
			if ($client->{waits} && (!$client->{session} || $client->{session}->answered || !$client->{session}->connected))
			{
				$client->{session} ? take_answer($client) : ($client->{again} = 1);
				$client->{waits} = 0;
				$moved = 1;
			}
			next if $client->{waits} || $options{finish} && !$client->{again};
			next unless $client->{session} || eval { connect_client($client) };
			$client->{waits} = eval { send_next($client); 1 } or $client->{session} = undef;
		}
		Time::HiRes::usleep(1000) unless $moved;
	}
	return;
}

# A test: every unit that was acknowledged is there, once; nothing else is.
sub is_right
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	work(0, finish => 1);
	my $server = List::Util::first { eval { admin_of($_)->value('SELECT NOT pg_is_in_recovery()') eq 't' } } @nodes;
	my $seen = join ' ',
	  @{ admin_of($server)->query('SELECT count(*), (SELECT sum(v) FROM counters), (SELECT count(*) FROM weir.submitted_key) FROM done')->[0] };
	is("$seen @mistakes", "$acked $acked $acked ", $name);
	note("$acked acknowledged, tried again: $tried_again, " . join ', ', map { "$_ $codes{$_}" } sort keys %codes);
	return;
}

# ---- what happens to them

sub processes
{
	my ($condition) = @_;
	return List::Util::shuffle(map { $_->[0] } @{ admin_of($node)->query("SELECT pid FROM pg_stat_activity WHERE $condition") });
}

sub workers { return processes(q{backend_type = 'pg_weir submitter'}) }
sub backends { return processes(q{usename = 'app' AND backend_type = 'client backend'}) }

sub signal_with
{
	my ($function, @pids) = @_;
	my $session = admin_of($node);
	$session->query("SELECT $function($_)") foreach @pids;
	return;
}

# By a child of ours: whose node it is does not learn of it.
sub stop
{
	my ($mode) = @_;
	return PostgreSQL::Test::Utils::system_log('pg_ctl', '-D', $node->data_dir, '-m', $mode, '-w', 'stop');
}

my %kill = (
	'a worker, -9' => sub { kill 'KILL', (workers())[0] // return },
	'a backend, -9' => sub { kill 'KILL', (backends())[0] },
	'immediate stop' => sub { stop('immediate') },
	'fast stop' => sub { stop('fast') },
	'pg_terminate_backend of the worker' => sub { signal_with('pg_terminate_backend', workers()) },
	'pg_cancel_backend of the worker' => sub { signal_with('pg_cancel_backend', workers()) foreach 1 .. 5 },
	'pg_terminate_backend of backends' => sub { signal_with('pg_terminate_backend', (backends())[ 0 .. 5 ]) },
	'pg_cancel_backend of backends' => sub { signal_with('pg_cancel_backend', backends()) foreach 1 .. 3 },);

# While the clients work: a child does it, after a moment.
sub happens
{
	my ($what) = @_;
	my $child = fork // die "fork: $!";
	if (!$child)
	{
		Time::HiRes::usleep(rand 100_000);
		eval { $kill{$what}->() };
		POSIX::_exit(0);
	}
	work(0, until => sub { waitpid($child, POSIX::WNOHANG) == $child });
	return if $what !~ /stop/;
	$node->_update_pid(0);
	$node->start;
	return;
}


sub await_worker
{
	poll_until(
		'a worker serves',
		sub {
			work(20);
			eval { admin_of($_[0] // $nodes[-1])->value('SELECT units > 10 FROM weir.stat_submit') eq 't' };
		});
	return;
}

work(100);
my @kinds = sort keys %kill;
foreach my $number (1 .. $kills)
{
	my $what = $number <= @kinds ? $kinds[ $number - 1 ] : $kinds[ rand @kinds ];
	await_worker();
	work(50 + int rand 200);
	happens($what);
	poll_until('the server answers', sub { eval { admin_of($node)->value('SELECT 1') } });
	work(50);
	is_right("$number, $what");
}

# ---- promotion

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('submit_standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$standby->start;
$admin = admin_of($node);
$admin->query($_) foreach q{ALTER SYSTEM SET synchronous_standby_names = '*'}, 'SELECT pg_reload_conf()';
poll_until('the standby is synchronous',
	sub { $admin->value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'") == 1 });
await_worker($node);
work(200);
$node->kill9;
push @nodes, $standby;
shift @nodes;
$_->{session} = undef, $_->{again} = $_->{waits}, $_->{waits} = 0 foreach @clients;
$standby->promote;
await_worker($standby);
is_right('after promotion: what was tried on the primary, and tried again here');

done_testing();
