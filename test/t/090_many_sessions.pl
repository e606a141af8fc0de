# A thousand sessions and more against a small limit: nobody is lost, and nothing is left when they are gone, however
# they go.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

# pgbench needs a descriptor a client.
my $descriptors = `sh -c 'ulimit -Hn'`;
chomp $descriptors;
$descriptors = 2048 if $descriptors eq 'unlimited' || $descriptors > 2048;
my $clients = $descriptors - 148;
plan skip_all => "ulimit -Hn is $descriptors, too low for 1000 clients" if $clients < 1000;

my $node = gated_node('many', 'max_connections' => 2000, 'weir.stall_timeout' => '2s', 'weir.idle_yield' => '5ms');
my $admin = admin_of($node);
$admin->query($_) foreach 'CREATE TABLE t (client int, n int)', 'GRANT ALL ON t TO app';

my $script = "$PostgreSQL::Test::Utils::tmp_check/many.sql";
append_to_file($script, "BEGIN;\nINSERT INTO t VALUES (:client_id, 1);\nCOMMIT;\n");

# Without -C each client connects before any begins; -j 4 threads share them.
sub start_pgbench
{
	my ($transactions, $output) = @_;
	return IPC::Run::start(
		[
			'sh', '-c', "ulimit -n $descriptors && exec \"\$0\" \"\$@\"", 'pgbench', '-n', '-c', $clients, '-j', 4, '-t', $transactions, '-f', $script, '-h', $node->host,
			'-p', $node->port, '-U', 'app', 'postgres'
		],
		'>', $output, '2>&1', IPC::Run::timeout(120));
}

foreach my $limit (4, -1)
{
	reconfigure($admin, 'weir.max_active' => $limit);
	$admin->query($_) foreach 'TRUNCATE t', 'SELECT weir.reset()';
	my $pgbench = start_pgbench(2, \my $output);
	ok($pgbench->finish, "limit $limit: pgbench ends") || diag($output);
	my $all = 2 * $clients;
	like($output, qr{actually processed: $all/$all\n}, "limit $limit: $clients clients, all transactions processed");
	is($admin->value('SELECT count(*) FROM t'), $all, "limit $limit: and committed");
	is($admin->value("SELECT concat_ws(' ', admitted, refused, timed_out) FROM weir.stat_admission"), "$all 0 0", "limit $limit: each was admitted once");
	cmp_ok(admission($admin, 'queued'), '>', 100, "limit $limit: and many waited");
	nothing_left($admin, "limit $limit");
}

# ---- the clients are killed while most of them wait

reconfigure($admin, 'weir.max_active' => 4, 'weir.idle_yield' => -1, 'weir.stall_timeout' => 0);
my @holders = map { app_of($node) } 1 .. 4;
$_->query('BEGIN') foreach @holders;
$admin->query('SELECT weir.reset()');
my $pgbench = start_pgbench(2, \my $output);
wait_for_waiting($admin, $clients);
$pgbench->signal('KILL');
eval { $pgbench->finish };
# Who leaves is counted a moment after it is out of the queue.
poll_until('all of them have left', sub { $admin->value("SELECT waiting = 0 AND client_gone >= $clients FROM weir.stat_admission") eq 't' });
is($admin->value("SELECT concat_ws(' ', client_gone, active) FROM weir.stat_admission"), "$clients 4", 'kill -9 of all clients while they wait: all have left');
$_->query('COMMIT') foreach @holders;
nothing_left($admin, 'kill -9 of all clients while they wait');
poll_until('the sessions end', sub { $admin->value(q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'}) == 0 });

# And in the middle of the work.
reconfigure($admin, 'weir.idle_yield' => '5ms');
$admin->query('SELECT weir.reset()');
$pgbench = start_pgbench(1000, \$output);
poll_until('they work', sub { $admin->value('SELECT admitted >= 1000 AND waiting >= 500 FROM weir.stat_admission') eq 't' });
$pgbench->signal('KILL');
eval { $pgbench->finish };
nothing_left($admin, 'kill -9 of all clients at work');
answers_at_once($holders[0], 'SELECT 1', 'the server goes on');

no_warnings($node, 'no warning in the log of the server');

done_testing();
