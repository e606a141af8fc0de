# On a hot standby the gate works as on a primary, and goes on through promotion: nothing is restarted, and nobody who
# waits is lost.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = gated_node('primary', node => { allows_streaming => 1 });
my $primary_admin = admin_of($primary);
$primary_admin->query($_) foreach 'CREATE TABLE t (i int)', 'INSERT INTO t VALUES (1)', 'GRANT ALL ON t TO app';
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

my $admin = admin_of($standby);
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir launcher'};
poll_until('the launcher starts', sub { $admin->value($launcher) ne '' });
my $launcher_pid = $admin->value($launcher);
pass('a launcher runs on the standby');

sub replay_a_row
{
	my ($i) = @_;
	$primary_admin->query("INSERT INTO t VALUES ($i)");
	return poll_until("row $i is replayed", sub { $admin->value('SELECT max(i) FROM t') == $i });
}

# ---- in recovery

is($admin->value("SELECT concat_ws(' ', pg_is_in_recovery(), mode, limit_now) FROM weir.stat_admission"), 't enforce 1', 'in recovery, in force');
my ($holder, @waiters) = map { app_of($standby) } 1 .. 4;
$holder->query('BEGIN');
$waiters[0]->send('SELECT max(i) FROM t');
wait_for_waiting($admin, 1);
$waiters[1]->send('BEGIN');
wait_for_waiting($admin, 2);
pass('a second transaction waits');
is($admin->value("SELECT string_agg(coalesce(backend_xmin::text, 'none'), ' ') FROM pg_stat_activity JOIN weir.activity USING (pid) WHERE activity.state = 'waiting'"),
	'none none', 'without a snapshot');
replay_a_row(2);
$holder->query('COMMIT');
is($waiters[0]->answer->{rows}[0][0], 2, 'and sees what was replayed meanwhile');
is($waiters[1]->answer->{tag}, 'BEGIN', 'the next one follows');
$holder->send('SELECT 1');
wait_for_waiting($admin, 1);
$admin->query('SELECT pg_cancel_backend(' . $holder->pid . ')');
is($holder->answer->{code}, '57014', 'cancelled in the wait');
$waiters[1]->query('COMMIT');
nothing_left($admin, 'in recovery');

# Locks that the primary takes are replayed: who waits in the queue does not stop that for longer than it may.
$waiters[0]->parse('select', 'SELECT max(i) FROM t');
$holder->query('BEGIN');
$waiters[0]->execute('select');
wait_for_waiting($admin, 1);
is($admin->value("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND pid = " . $waiters[0]->pid), 1, 'a waiter has its relation lock');
reconfigure($admin, 'max_standby_streaming_delay' => '100ms');
$primary_admin->query('BEGIN');
$primary_admin->query('LOCK TABLE t');
$primary_admin->query('COMMIT');
is($waiters[0]->answer->{code}, '40001', 'a waiter in conflict with recovery is cancelled');
$holder->query('COMMIT');
nothing_left($admin, 'after a conflict with recovery');

# Where replay waits for as long as it takes, it is let in.
reconfigure($admin, 'max_standby_streaming_delay' => '-1', 'deadlock_timeout' => '100ms');
$waiters[0]->parse('again', 'SELECT max(i) FROM t');
$holder->query('BEGIN');
$waiters[0]->execute('again');
wait_for_waiting($admin, 1);
$primary_admin->query('BEGIN');
$primary_admin->query('LOCK TABLE t');
$primary_admin->query('COMMIT');
is(($waiters[0]->answer // { code => 'none' })->{code}, '', 'a waiter for whose lock replay waits is let in over the limit');
is(admission($admin, 'admitted_over_limit'), 1, 'counted');
$holder->query('COMMIT');
reconfigure($admin, 'max_standby_streaming_delay' => '100ms', 'deadlock_timeout' => '1s');
nothing_left($admin, 'after replay waited for a waiter');

# Reload, on its own: a standby has limits of its own.
$holder->query('BEGIN');
$_->send('BEGIN') foreach @waiters;
wait_for_waiting($admin, 3);
reconfigure($admin, 'weir.max_active' => 3);
poll_until('two go on', sub { admission($admin, 'active') == 3 });
is(admission($admin, 'waiting'), 1, 'the limit is raised on the standby');
is(admission($primary_admin, 'limit_now'), 1, 'and not on the primary');
$holder->query('COMMIT');
foreach my $waiter (@waiters)
{
	is($waiter->answer->{tag}, 'BEGIN', 'all of them begin');
}
$_->query('COMMIT') foreach @waiters;
reconfigure($admin, 'weir.max_active' => 1);
nothing_left($admin, 'after a reload in recovery');

# Observe.
reconfigure($admin, 'weir.mode' => 'observe');
$admin->query('SELECT weir.reset()');
$holder->query('BEGIN');
answers_at_once($waiters[0], 'SELECT 1', 'observe in recovery');
is($admin->value("SELECT concat_ws(' ', admitted, queued) FROM weir.stat_admission"), '2 1', 'counts, and who would have waited');
$holder->query('COMMIT');
reconfigure($admin, 'weir.mode' => 'enforce');

# ---- promotion, while one holds the slot and three wait

replay_a_row(3);
$holder->query('BEGIN');
is($holder->value('SELECT max(i) FROM t'), 3, 'a transaction begins in recovery');
$waiters[0]->send('SELECT max(i) FROM t');
wait_for_waiting($admin, 1);
$waiters[1]->send('BEGIN');
wait_for_waiting($admin, 2);
$waiters[2]->send('INSERT INTO t VALUES (4)');
wait_for_waiting($admin, 3);
$standby->promote;
$admin->query('INSERT INTO t VALUES (5)');
is(join(' ', map { $_->state($admin) } $holder, @waiters), 'active waiting waiting waiting', 'promoted: nobody lost his place');
is($holder->value('SELECT max(i) FROM t'), 5, 'the transaction that began in recovery goes on');
answers_at_once($holder, 'COMMIT', 'and ends');
is($waiters[0]->answer->{rows}[0][0], 5, 'who waited sees what was written after promotion');
is($waiters[1]->answer->{tag}, 'BEGIN', 'the next one begins');
$waiters[1]->query('COMMIT');
is($waiters[2]->answer->{code}, '25006', 'one that began to write in recovery may not');
is($waiters[2]->send('INSERT INTO t VALUES (6)')->answer->{code}, '', 'its next transaction may');
is($admin->value($launcher), $launcher_pid, 'the launcher is the same');
nothing_left($admin, 'after promotion');

$holder->query('BEGIN');
$holder->query('INSERT INTO t VALUES (7)');
$waiters[0]->send('INSERT INTO t VALUES (8)');
waits_for_slot($admin, $waiters[0], 'the limit is in force on the new primary', sub { $holder->query('COMMIT') });
$holder->query('BEGIN');
$waiters[0]->send('SELECT 1');
wait_for_waiting($admin, 1);
reconfigure($admin, 'weir.max_active' => 2);
ok($waiters[0]->answer($PgWeir::at_once_s), 'a reload reaches those who wait');
$holder->query('COMMIT');
reconfigure($admin, 'weir.max_active' => 1, 'weir.idle_yield' => '5ms');
$holder->query('BEGIN');
answers_at_once($waiters[0], 'SELECT 1', 'the launcher lends slots');
$holder->query('COMMIT');
nothing_left($admin, 'in the end');

no_warnings($standby, 'no warning in the log of the standby');

done_testing();
