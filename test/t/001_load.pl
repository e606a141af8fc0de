# Loading and unloading: only through shared_preload_libraries; and the gate does not need the extension's objects.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use Test::More;

# ---- a server without the library

my $plain = PostgreSQL::Test::Cluster->new('plain');
$plain->init;
$plain->start;
my $admin = admin_of($plain);
foreach my $sql ("LOAD 'pg_weir'", 'CREATE EXTENSION pg_weir')
{
	my $answer = $admin->send($sql)->answer;
	is($answer->{code}, '55000', "$sql without shared_preload_libraries: SQLSTATE");
	is($answer->{message}, 'pg_weir must be loaded via shared_preload_libraries', "$sql: message");
	is( $answer->{hint},
		'Add pg_weir to shared_preload_libraries in postgresql.conf and restart the server.',
		"$sql: HINT");
}
is($admin->value("SELECT count(*) FROM pg_namespace WHERE nspname = 'weir'"), 0, 'nothing is left behind');
is($admin->value('SELECT 1'), 1, 'the session goes on');
$admin->close;
$plain->stop;

# ---- dropped while the gate is in force

my $node = gated_node('gated');
$admin = admin_of($node);
is($admin->value("SELECT extversion FROM pg_extension WHERE extname = 'pg_weir'"), '1.0', 'CREATE EXTENSION');
is(admission($admin, 'mode'), 'enforce', 'the gate is in force');

my ($holder, @waiters) = map { app_of($node) } 1 .. 4;
$holder->query('BEGIN');
$_->send('SELECT 42') foreach @waiters;
wait_for_waiting($admin, 3);

answers_at_once($admin, 'DROP EXTENSION pg_weir', 'DROP EXTENSION while sessions wait');
is($admin->value("SELECT to_regclass('weir.stat_admission')"), '', 'the views are gone');
ok(!(grep { $_->answered } @waiters), 'they still wait');

# The views are gone; a waiter shows as one that waits for an extension.
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Extension'};
my $late = app_of($node);
$late->send('BEGIN');
poll_until('a new transaction waits', sub { $admin->value($waiting) == 4 });
ok(!$late->answered, 'the gate stays in force');

$holder->query('COMMIT');
is($_->answer->{rows}[0][0], 42, 'a waiter goes on') foreach @waiters;
is($late->answer->{tag}, 'BEGIN', 'the new one too');
$late->query('COMMIT');

answers_at_once($admin, 'CREATE EXTENSION pg_weir', 'CREATE EXTENSION again');
is(admission($admin, 'queued'), 4, 'it shows what was counted meanwhile');
nothing_left($admin, 'in the end');

done_testing();
