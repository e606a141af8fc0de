# What was acknowledged is on the synchronous standby: the primary is killed, the standby promoted, and the clients go on there. What
# they were told of their writes before and after must be there, and batches too.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Faults;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $seed = $ENV{SEED} // time;
srand $seed;
note("SEED=$seed");

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.max_active' => 0,
	'max_connections' => 120,
	'log_statement' => 'none',
	'max_worker_processes' => 16);
skip_without_coalescing($primary);

# It waits until a standby that has just begun to stream is there to wait for.
sub synchronous_standby
{
	my ($of, $name) = @_;
	$of->backup("for_$name");
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($of, "for_$name", has_streaming => 1);
	$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	$standby->start;
	my $admin = admin_of($of);
	$admin->query("ALTER SYSTEM SET synchronous_standby_names = '*'");
	$admin->query('SELECT pg_reload_conf()');
	poll_until('the standby is synchronous',
		sub { $admin->value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'") == 1 });
	return $standby;
}

Faults::make_tables(admin_of($primary), coalesced => 1);
my $standby = synchronous_standby($primary, 'standby');
my $clients = Faults->start([ $primary, $standby ], clients => 32, seed => $seed);
$clients->go;
$clients->progress(2000);
is_coalesced(admin_of($primary), $_, 100) foreach qw(faults_rows faults_counters);
Time::HiRes::usleep(rand 500_000);
$primary->kill9;

$standby->promote;
$clients->progress(1000);
# A worker must have started there first.
poll_until(
	'the promoted standby coalesces',
	sub {
		$clients->progress(200);
		admin_of($standby)->value("SELECT count(*) FROM weir.stat_coalesce WHERE relation IN ('faults_rows'::regclass, 'faults_counters'::regclass) AND requests >= 20") == 2;
	});
$clients->is_right('after promotion');
cmp_ok($clients->figure('unknown'), '>', 0, 'answers were outstanding when the primary died');
is_coalesced(admin_of($standby), $_, 20) foreach qw(faults_rows faults_counters);
$clients->stop;

done_testing();
