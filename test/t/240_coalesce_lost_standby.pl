# A batch that waits for a synchronous standby which never answers: its sessions can be ended, the server stops, and what was committed is
# there and is served on when the wait is over.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'lost_standby',
	node => { allows_streaming => 1 },
	'max_connections' => 60,
	'weir.max_active' => 0,
	'deadlock_timeout' => '10s');
skip_without_coalescing($node);
my $admin = admin_of($node);
$admin->query($_) foreach
  'CREATE TABLE counters (id int PRIMARY KEY, v int NOT NULL)', 'INSERT INTO counters SELECT g, 0 FROM generate_series(1, 9) g',
  'CREATE TABLE held (id int PRIMARY KEY, v int)', 'INSERT INTO held VALUES (1, 0)',
  'GRANT ALL ON ALL TABLES IN SCHEMA public TO app';
opt_in($admin, 'counters', 'held');

sub workers
{
	my ($condition) = @_;
	return $admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer' AND $condition");
}

# A worker is there, and so many write at once that it is worth its while: they wait for a row that $holder has.
my $holder = admin_of($node);
my @company = map { app_of($node) } 1 .. 14;
my $app = app_of($node);
$holder->query('BEGIN');
$holder->query('UPDATE held SET v = 0 WHERE id = 1');
sub await_worker
{
	my ($session) = @_;
	poll_until('a worker', sub { $session->query('UPDATE counters SET v = v WHERE id = 9'); workers("wait_event IS NOT NULL") == 1 });
	return;
}
await_worker($app);
$_->send('UPDATE held SET v = v + 1 WHERE id = 1') foreach @company;
poll_until('company', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });

# Sends an update through the worker, whose commit then waits for nobody.
sub send_into_the_wait
{
	my ($session, $id) = @_;
	$session->send("UPDATE counters SET v = v + 1 WHERE id = $id");
	poll_until('the worker waits for a standby', sub { workers("wait_event = 'SyncRep'") == 1 });
	return;
}

set_standbys($node, 'nobody');
my $pid = $app->value('SELECT pg_backend_pid()');
send_into_the_wait($app, 1);
is($admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $pid"), 'Extension', 'the session waits for the worker');
$admin->query("SELECT pg_terminate_backend($pid)");
poll_until('the session has ended', sub { $admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") == 0 });
is(workers("wait_event = 'SyncRep'"), 1, 'a session that waits with its batch for a standby can be terminated; the batch waits on');

set_standbys($node, '');
poll_until('the batch is committed', sub { $admin->value('SELECT v FROM counters WHERE id = 1') == 1 });
pass('what it wrote was committed');

# Its PGPROC's request slot can be used again, whoever has it now.
my @others = map { app_of($node) } 1 .. 3;
my $before = $admin->value(q{SELECT requests FROM weir.stat_coalesce WHERE relation = 'counters'::regclass});
$_->query('UPDATE counters SET v = v + 1 WHERE id = 2') foreach @others;
is($admin->value(q{SELECT requests FROM weir.stat_coalesce WHERE relation = 'counters'::regclass}) - $before, 3,
	'its request slot serves the next');

set_standbys($node, 'nobody');
send_into_the_wait($others[1], 4);
$admin->query(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'});
is($others[1]->answer->{tag}, 'UPDATE 1', 'the wait is cancelled: done, as on the ordinary path');
send_into_the_wait($others[2], 5);
$admin->query(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'});
is($others[2]->answer->{code}, '40003', 'the worker is terminated in it: nobody knows');
set_standbys($node, '');
await_worker($others[1]);
is($admin->value('SELECT count(*) FROM counters WHERE id IN (4, 5) AND v = 1'), 2, 'both are committed here');

set_standbys($node, 'nobody');
send_into_the_wait($others[0], 3);
$node->stop('fast');
pass('a fast shutdown does not wait for the standby');
$node->append_conf('postgresql.auto.conf', "synchronous_standby_names = ''");
$node->start;
$admin = admin_of($node);
is($admin->value('SELECT v FROM counters WHERE id = 3'), 1, 'and what waited was committed');

# ---- the postmaster dies while a worker has a request and waits for more: nobody is told that it was committed

$admin->query($_) foreach "ALTER SYSTEM SET weir.coalesce_max_delay = '1s'", 'SELECT pg_reload_conf()';
$holder = admin_of($node);
@company = map { app_of($node) } 1 .. 14;
$app = app_of($node);
$holder->query('BEGIN');
$holder->query('UPDATE held SET v = 0 WHERE id = 1');
await_worker($app);
$_->send('UPDATE held SET v = v + 1 WHERE id = 1') foreach @company;
poll_until('company', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });
$before = $admin->value('SELECT v FROM counters WHERE id = 9');
my $session = app_of($node);
my $at = $session->value('SELECT pg_backend_pid()');
$session->send('UPDATE counters SET v = v + 1000 WHERE id = 9');
poll_until('it waits for the worker', sub { $admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $at") eq 'Extension' });
$node->kill9;
my $told = eval { $session->answer->{tag} } // 'nothing';
poll_until('it starts again',
	sub { PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, 'start') == 0 });
$node->_update_pid(1);
$admin = admin_of($node);
my $written = $admin->value('SELECT v FROM counters WHERE id = 9') - $before;
ok($written == 1000 || $told ne 'UPDATE 1', "told $told, and there is $written");
nothing_left($admin, 'at the end');

done_testing();
