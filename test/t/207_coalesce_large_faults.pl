# Coalescing: requests of more than 8 kB are in memory that all share. Whatever becomes of a request, its client or its worker,
# nothing is left there; and who finds no room goes the ordinary way.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'large',
	'max_connections' => 60,
	'weir.max_active' => 0,
	'weir.coalesce_memory' => '2MB',
	'restart_after_crash' => 'on',
	'wal_level' => 'replica',
	'max_wal_senders' => 2,
	'deadlock_timeout' => '10s');
skip_without_coalescing($node);
my ($admin, $app, $holder, @company, $worker);
$admin = admin_of($node);
$admin->query($_) foreach
  'CREATE TABLE large (k int PRIMARY KEY, n int DEFAULT 0, body text)', 'ALTER TABLE large ALTER body SET STORAGE EXTERNAL',
  'CREATE TABLE held (id int PRIMARY KEY, v int)', 'INSERT INTO held VALUES (1, 0)',
  q{SELECT weir.coalesce_table(t) FROM unnest('{large,held}'::regclass[]) t}, 'GRANT ALL ON ALL TABLES IN SCHEMA public TO app';

sub memory { my ($column) = @_; return $admin->value("SELECT $column FROM weir.coalesce_memory") }
sub is_empty { my ($name) = @_; return poll_until("nothing is left in the memory: $name", sub { memory('in_use') == 0 }) }
sub worker { return $admin->value(q{SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer' AND query = 'coalescing'}) }
sub requests { return $admin->value('SELECT coalesce(sum(requests), 0) FROM weir.stat_coalesce') }
my $large = q{repeat('x', 100000)};
my $next = 1;
sub insert { my ($size) = @_; return 'INSERT INTO large (k, body) VALUES (' . $next++ . ", repeat('x', " . ($size // 100000) . '))' }

# So many write at once that a worker is worth its while; and there is one, and memory.
sub gather
{
	$app = app_of($node);
	$holder = admin_of($node);
	@company = map { app_of($node) } 1 .. 14;
	$holder->query('BEGIN');
	$holder->query('UPDATE held SET v = 0 WHERE id = 1');
	poll_until('a worker', sub { $app->query('UPDATE held SET v = v WHERE id = 99'); worker() });
	$_->send('UPDATE held SET v = v + 1 WHERE id = 1') foreach @company;
	poll_until('company', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });
	poll_until('memory', sub { $app->query(insert()); memory('bytes') > 0 });
	my $before = requests();
	is($app->send(insert())->answer->{tag}, 'INSERT 0 1', 'a large request');
	is(requests() - $before, 1, 'goes through the worker');
	is_empty('after it');
	$worker = worker();
	return;
}
gather();

# A worker that has stood still is sent nothing for a while. So it is stopped when it has just taken something.
sub stop_worker
{
	kill 'CONT', $worker;
	poll_until('the worker takes requests', sub { my $before = requests(); $app->query(insert(10)); requests() > $before });
	kill 'STOP', $worker;
	return;
}

# Sends a statement that waits for a worker that is stopped.
sub queue_up
{
	my ($session, $sql, $name) = @_;
	$session->send($sql);
	poll_until("it is queued: $name", sub { $admin->value("SELECT coalesce(wait_event_type, '') FROM pg_stat_activity WHERE pid = $session->{pid}") eq 'Extension' });
	return;
}

# ---- the client

stop_worker();
queue_up($app, insert(), 'to be cancelled');
is(memory('in_use'), 1, 'it is in the memory');
$admin->query("SELECT pg_cancel_backend($app->{pid})");
is($app->answer($PgWeir::at_once_s)->{code}, '57014', 'cancelled while queued');
is_empty('cancelled');

stop_worker();
queue_up($app, insert(), 'to be terminated');
$admin->query("SELECT pg_terminate_backend($app->{pid})");
poll_until('the session is gone', sub { !$admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $app->{pid}") });
is_empty('terminated');
$app = app_of($node);

stop_worker();
queue_up($app, insert(), 'whose client goes');
shutdown $app->{socket}, 2;
is_empty('its worker is stuck, its client gone');
$app = app_of($node);

# ---- no room: four of 400 kB fit at most

my @many = map { app_of($node) } 1 .. 8;
stop_worker();
my $refused = memory('refused');
$_->send(insert(400_000)) foreach @many;
is($_->answer->{tag}, 'INSERT 0 1', 'with or without room') foreach @many;
cmp_ok(memory('refused'), '>', $refused, 'some found no room');
is_empty('what was there');
kill 'CONT', $worker;
is($admin->value('SELECT count(*) FROM large WHERE length(body) = 400000'), 8, 'all rows are there once');

# ---- a request that fails, and its batch

foreach my $round (1 .. 3)
{
	stop_worker();
	$_->send(insert()) foreach @many[ 0 .. 3 ];
	$many[4]->send('UPDATE large SET n = 1 / n, body = ' . $large . ' WHERE k = 1 RETURNING *');
	$many[5]->send('UPDATE large SET n = n + 1, body = ' . $large . ' WHERE k = 2 RETURNING *');
	poll_until('some are queued', sub { memory('in_use') > 2 });
	kill 'CONT', $worker;
	is($_->answer->{tag}, 'INSERT 0 1', 'beside one that fails') foreach @many[ 0 .. 3 ];
	is($many[4]->answer->{code}, '22012', 'which gets its error');
	is($many[5]->answer->{tag}, 'UPDATE 1', 'beside it');
	is_empty("a batch with a failure, $round");
}
is($admin->value('SELECT n FROM large WHERE k = 2'), 3, 'what did not fail was done once each');

# ---- a client that leaves while its batch waits for a standby: the worker frees what it left

$admin->query('SET synchronous_commit = local');
set_standbys($node, 'nobody');
$app->send(insert());
poll_until('its batch waits for a standby',
	sub { $admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $worker AND wait_event = 'SyncRep'") });
$admin->query("SELECT pg_terminate_backend($app->{pid})");
poll_until('the session is gone', sub { !$admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $app->{pid}") });
is(memory('in_use'), 1, 'the worker may still read the request of a client that has left');
set_standbys($node, '');
is_empty('a client has left');
$app = app_of($node);

# ---- the worker

stop_worker();
queue_up($app, insert(), 'its worker is terminated');
$admin->query("SELECT pg_terminate_backend($worker)");
kill 'CONT', $worker;
is($app->answer->{tag}, 'INSERT 0 1', 'its worker is terminated: it is written');
is_empty('the worker was terminated');
my $before = memory('allocated');
poll_until('another worker', sub { $app->query(insert()); memory('allocated') > $before });
is_empty('another worker');
is($admin->value('SELECT count(*) FROM (SELECT k FROM large GROUP BY k HAVING count(*) > 1) s'), 0, 'no row is there twice');

# ---- a process is killed

$worker = worker();
stop_worker();
queue_up($app, insert(), 'the worker is killed');
my $k = $next - 1;
kill 'KILL', $worker;
poll_until('the server is back, without the memory', sub { local $@; eval { $admin->close; $admin = admin_of($node); (memory('bytes') // '') eq '0' } });
is(memory('in_use'), 0, 'after a crash restart nothing is in the memory');
is($admin->value("SELECT count(*) FROM large WHERE k = $k"), 0, 'what was queued was not written');
gather();

$holder->query('ROLLBACK');
$_->answer foreach @company;
nothing_left($admin, 'at the end');
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|snapshot .* still active|resource was not closed|leaked/, 'nothing leaked');

done_testing();
