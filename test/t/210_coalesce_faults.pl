# What clients were told of their writes is true, whoever is killed: acknowledged is there once, refused is not, unknown
# is there at most once. First the checker itself: it must believe PostgreSQL, and see each kind of lie.
#
# KILLS=10, SEED: what is killed, in which order and when

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Faults;
use List::Util ();
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $kills = $ENV{KILLS} // 10;
my $seed = $ENV{SEED} // time;
srand $seed;
note("SEED=$seed KILLS=$kills");

# A lie is told by the server with fsync off as well, but a flush that costs nothing makes no batches.
my $node = gated_node(
	'faults',
	'weir.max_active' => 16,
	'weir.idle_yield' => '5ms',
	'weir.stall_timeout' => '1s',
	'max_connections' => 120,
	'restart_after_crash' => 'on',
	'fsync' => 'on',
	'max_worker_processes' => 16,
	'deadlock_timeout' => '200ms',
	'log_statement' => 'none');
skip_without_coalescing($node);

sub admin { return admin_of($node) }

# It answers: it has been started again, or recovered by itself.
sub await_server
{
	return poll_until('the server answers', sub { eval { admin()->value('SELECT 1') } });
}

# Processes left behind by a postmaster that was killed must end by themselves before the next one starts.
sub start_again
{
	poll_until(
		'it starts again',
		sub {
			return PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, 'start') == 0;
		});
	$node->_update_pid(1);
	return;
}

# Process ids of backends of that kind.
sub server_processes
{
	my ($condition) = @_;
	return List::Util::shuffle(map { $_->[0] } @{ admin()->query("SELECT pid FROM pg_stat_activity WHERE $condition") });
}

sub workers { return server_processes("backend_type LIKE 'pg_weir%' AND backend_type <> 'pg_weir launcher'") }
sub backends { return server_processes("application_name = 'faults'") }

sub signal_with
{
	my ($function, @pids) = @_;
	my $admin = admin();
	$admin->query("SELECT $function($_)") foreach @pids;
	return;
}

my %kill = (
	'a worker, -9' => sub { kill 'KILL', (workers())[0] // return },
	'a backend, -9' => sub { kill 'KILL', (backends())[0] },
	'the postmaster, -9' => sub { $node->kill9; start_again() },
	'immediate stop' => sub { $node->stop('immediate'); start_again() },
	'fast stop' => sub { $node->stop('fast'); start_again() },
	'pg_terminate_backend of the workers' => sub { signal_with('pg_terminate_backend', workers()) },
	'pg_cancel_backend of the workers' => sub { signal_with('pg_cancel_backend', workers()) foreach 1 .. 5 },
	'pg_terminate_backend of backends' => sub { signal_with('pg_terminate_backend', (backends())[ 0 .. 9 ]) },
	'pg_cancel_backend of backends' => sub { signal_with('pg_cancel_backend', backends()) foreach 1 .. 5 },
	'clients' => sub { kill 'KILL', (List::Util::shuffle($_[0]->clients))[ 0 .. 9 ] },);

sub queued_requests
{
	return admin()->value(q{SELECT queued FROM weir.stat_coalesce WHERE relation = 'faults_rows'::regclass}) // 0;
}

# A test: one kill while the clients work; they work on afterwards, and all that they were told is true.
sub survives
{
	my ($clients, $what, $number) = @_;
	$clients->go;
	$clients->progress(200);
	Time::HiRes::usleep(rand 300_000);
	$kill{$what}->($clients);
	await_server();
	my $goes_on = eval { $clients->progress(100); 1 };
	ok($goes_on, "$number, $what: they go on");
	return $clients->is_right("$number, $what");
}

# ---- the checker: PostgreSQL tells the truth

Faults::make_tables(admin());
my $clients = Faults->start($node, clients => 16, seed => $seed);
$clients->go;
$clients->progress(1000);
$clients->is_right('plain PostgreSQL');
is($clients->figure('unknown'), 0, 'every answer came');
cmp_ok($clients->figure('refused'), '>', 0, 'something was refused');
survives($clients, $_, 'plain PostgreSQL') foreach 'a backend, -9', 'clients', 'pg_terminate_backend of backends';
cmp_ok($clients->figure('unknown'), '>', 0, 'lost connections leave something unknown');
$clients->command('reset');

# ---- the checker: lies that are told while they work, or afterwards

# A trigger that lies about every third row or so.
sub liar
{
	my ($table, $when, $body) = @_;
	my $admin = admin();
	$admin->query($_)
	  foreach
	  "CREATE OR REPLACE FUNCTION lie() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
		IF random() < 0.3 AND pg_trigger_depth() = 1 THEN $body END IF; RETURN NEW; END \$\$",
	  "CREATE TRIGGER lie $when ON $table FOR EACH ROW EXECUTE FUNCTION lie()";
	return;
}

sub is_caught
{
	my ($name, $pattern, $table, $when, $body) = @_;
	liar($table, $when, $body) if $when;
	$clients->go;
	$clients->progress(500);
	$clients->is_right("before: $name") unless $when;
	admin()->query($body) unless $when;
	$clients->is_wrong($pattern, "caught: $name");
	admin()->query("DROP TRIGGER lie ON $table") if $when;
	$clients->command('reset');
	return;
}

is_caught('a lost row', qr/^lost: /m, 'faults_rows', 'AFTER INSERT', 'DELETE FROM faults_rows WHERE id = NEW.id;');
is_caught(
	'a doubled row', qr/^doubled: /m, 'faults_rows',
	'AFTER INSERT',
	'INSERT INTO faults_rows (client, number, part) VALUES (NEW.client, NEW.number, NEW.part);');
is_caught('a row of somebody else', qr/^mixed up: client/m, 'faults_rows', 'AFTER INSERT',
	'UPDATE faults_rows SET id = id + 1000000 WHERE id = NEW.id;');
is_caught('a row that was not written', qr/^wrong tag: /m, 'faults_rows', 'BEFORE INSERT', 'RETURN NULL;');
is_caught('an increment lost', qr/^counter \d+: /m, 'faults_counters', 'BEFORE UPDATE', 'NEW.n = OLD.n;');
is_caught('an increment doubled', qr/^counter \d+: /m, 'faults_counters', 'BEFORE UPDATE', 'NEW.n = NEW.n + 1;');
is_caught('a value returned twice', qr/^mixed up: counter/m, 'faults_counters', 'BEFORE UPDATE', 'NEW.n = OLD.n;');
is_caught('an undue refusal', qr/^wrongly refused: .* 22012$/m, 'faults_counters', 'BEFORE UPDATE', 'NEW.n = 1 / 0;');
is_caught('a torn write', qr/^torn: /m, undef, undef, 'DELETE FROM faults_rows WHERE part = 1');
is_caught('a row from nowhere', qr/^from nowhere: /m, undef, undef,
	'INSERT INTO faults_rows (client, number, part) VALUES (0, 999999, 0)');
{
	$clients->go;
	$clients->progress(500);
	my $refused = '';
	poll_until('somebody is refused', sub { $refused = ($clients->command('refused'))[0] });
	my ($client, $number) = split ' ', $refused;
	admin()->query("INSERT INTO faults_rows (client, number, part) VALUES ($client, $number, 0)");
	$clients->is_wrong(qr/^there, though refused: client $client number $number,/m, 'caught: written though refused');
}
$clients->stop;

# ---- coalescing

Faults::make_tables(admin(), coalesced => 1);
$clients = Faults->start($node, clients => 64, seed => $seed);
$clients->go;
$clients->progress(5000);
my @tables = qw(faults_rows faults_counters);
poll_until('500 of each table are coalesced', sub { !grep { coalesced_requests(admin(), $_) < 500 } @tables }) unless $ENV{WITHOUT_COALESCING};
$clients->is_right('nobody is killed');
is($clients->figure('unknown'), 0, 'every answer came');
is_coalesced(admin(), $_, 500) foreach @tables;

my @deck;
foreach my $number (1 .. $kills)
{
	@deck = List::Util::shuffle(sort keys %kill) unless @deck;
	survives($clients, pop @deck, $number);
}

# A crash resets the counts, and the last hundred writes may have come before there was a worker again.
$clients->go;
poll_until('they are coalesced again', sub { !grep { coalesced_requests(admin(), $_) < 500 } @tables }) unless $ENV{WITHOUT_COALESCING};
$clients->is_right('coalesced again after the kills');
$clients->stop;
is_coalesced(admin(), $_, 500) foreach @tables;

# ---- answered when queued: only a crash loses, and no more than the queue holds

Faults::make_tables(admin(), coalesced => 1);
$clients = Faults->start($node, clients => 64, seed => $seed, queued => 1);
$clients->go;
$clients->progress(2000);
poll_until('some are queued', sub { queued_requests() >= 500 }) unless $ENV{WITHOUT_COALESCING};
$clients->is_right('queued, nobody is killed');
is($clients->figure('missing'), 0, 'nothing is lost');

my $queue_size = admin()->value(q{SELECT setting FROM pg_settings WHERE name = 'weir.coalesce_queue_size'}) // 0;
my %crashes = map { $_ => 1 } 'a worker, -9', 'a backend, -9', 'the postmaster, -9', 'immediate stop';
my @orderly = ('fast stop', 'pg_terminate_backend of the workers', 'pg_terminate_backend of backends', 'clients');
@deck = ((List::Util::shuffle(sort keys %crashes))[0], @orderly[ 0, 1 ]); # the short form
foreach my $number (1 .. List::Util::max(3, int($kills / 5)))
{
	@deck = List::Util::shuffle(sort(keys %crashes), @orderly) unless @deck;
	my $what = pop @deck;
	survives($clients, $what, "queued $number");
	my $lost = $clients->figure('missing');
	cmp_ok($lost, '<=', $crashes{$what} ? $queue_size : 0, "queued $number, $what: $lost lost");
}
$clients->stop;

done_testing();
