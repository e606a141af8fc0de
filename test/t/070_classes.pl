# Workload classes: who is in which, and what a class has: its share, its reserve, its limits.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'classes',
	'max_connections' => 80,
	'listen_addresses' => '127.0.0.1',
	'weir.max_active' => 20,
	'weir.classes' => 'interactive: weight=3; batch: weight=1; report: ; etl:');
my $admin = admin_of($node);
$admin->query($_) foreach
  'CREATE DATABASE crm', 'CREATE ROLE worker LOGIN',
  'CREATE ROLE reporter LOGIN', 'CREATE ROLE granted LOGIN',
  "ALTER ROLE worker SET weir.class = 'batch'", "ALTER DATABASE crm SET weir.class = 'report'",
  "ALTER ROLE reporter IN DATABASE postgres SET weir.class = 'Report'";

# A test: the next transaction of the session is of that class.
sub is_of
{
	my ($session, $class, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->query('BEGIN');
	is($session->class($admin), $class, $name);
	return $session->query('COMMIT');
}

# A test: who connects like this is of that class.
sub connects_to
{
	my ($class, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = app_of($node, %options);
	is_of($session, $class, $name);
	return $session->close;
}

# A test: $sql fails like this.
sub fails
{
	my ($session, $sql, $code, $message, $detail, $hint) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $session->send($sql)->answer;
	is($answer->{code}, $code, "$sql: SQLSTATE");
	like($answer->{message}, $message, "$sql: message");
	like($answer->{detail}, $detail, "$sql: DETAIL") if $detail;
	like($answer->{hint}, $hint, "$sql: HINT") if $hint;
	return;
}

# ---- weir.class

my $app = app_of($node);
is_of($app, 'default', 'nothing is set');
connects_to('batch', 'ALTER ROLE ... SET', user => 'worker');
connects_to('report', 'ALTER DATABASE ... SET', database => 'crm');
connects_to('batch', 'the role comes before the database', user => 'worker', database => 'crm');
connects_to('report', 'ALTER ROLE ... IN DATABASE ... SET, whatever the case', user => 'reporter');

my $boss = admin_of($node);
$boss->query("SET weir.class = 'etl'");
$boss->query('SET SESSION AUTHORIZATION app');
is_of($boss, 'etl', 'SET by a superuser');
$boss->close;

fails($app, "SET weir.class = 'batch'", '42501', qr/permission denied to set parameter "weir\.class"/);
ok(!eval { app_of($node, options => '-c weir.class=batch') }, 'nor in the startup packet');
like($@, qr/permission denied to set parameter "weir\.class"/, 'for the same reason');
$admin->query('GRANT SET ON PARAMETER weir.class TO granted');
my $granted = app_of($node, user => 'granted');
$granted->query("SET weir.class = 'batch'");
is_of($granted, 'batch', 'GRANT SET ON PARAMETER');
$granted->query('BEGIN');
$granted->query("SET LOCAL weir.class = 'etl'");
is($granted->class($admin), 'batch', 'a transaction keeps its class');
$granted->query('COMMIT');
is_of($granted, 'batch', 'SET LOCAL ends with it');
$granted->query('RESET weir.class');
is_of($granted, 'default', 'RESET');
connects_to('etl', 'in the startup packet', user => 'granted', options => '-c weir.class=etl');

fails($granted, "SET weir.class = 'nonsense'", '22023', qr/^invalid value for parameter "weir\.class": "nonsense"$/,
	qr/^There is no workload class "nonsense"\.$/, qr/weir\.classes.*weir\.stat_class/);
fails($granted, "SET weir.class = 'batch, etl'", '22023', qr/^invalid value/, qr/^expected one class name alone .*, at character 6, after "batch"\.$/);
is_of($granted, 'default', 'a refused SET changes nothing');

my $answer = $admin->send("ALTER ROLE reporter IN DATABASE postgres SET weir.class = 'later'")->answer;
is($answer->{code}, '', 'ALTER ROLE ... SET to a class that does not exist');
is($answer->{notices}[0]{severity}, 'NOTICE', 'says so');
is($answer->{notices}[0]{message}, 'there is no workload class "later" now', 'in these words');
is($answer->{notices}[0]{hint}, 'Until weir.classes lists it, such sessions are in class "default".', 'with a HINT');
fails($admin, "ALTER ROLE reporter SET weir.class = '7up'", '22023', qr/^invalid value/, qr/^expected a class name .*, at character 1/);
my $reporter = app_of($node, user => 'reporter');
is_of($reporter, 'default', 'logs in all the same');
connects_to('default', 'so does the startup packet of one who may', user => 'granted', options => '-c weir.class=nonsense');
reconfigure($admin, 'weir.classes' => 'interactive: weight=3; batch: ; report: ; etl: ; later:');
is_of($reporter, 'later', 'in its class, when there is such a class');

# ---- weir.class_map

reconfigure($admin,
	'weir.class_map' => 'role=nobody, database=postgres => etl; application_name="night*", role=app => batch;'
	  . ' database=template? => later; application_name=night_shift => interactive; address=local, role=granted => report;'
	  . ' address=127.0.0.0/8, database=post* => etl; address=10.0.0.0/8 => interactive; database=* => report');
is_of($app, 'report', 'the last rule, which catches all');
connects_to('batch', 'application_name: the first rule that matches', application_name => 'night_shift');
connects_to('interactive', 'role: not everybody', application_name => 'night_shift', user => 'granted');
connects_to('report', 'address: local', user => 'granted');
connects_to('etl', 'address: 127.0.0.0/8, through TCP', user => 'granted', tcp => 1);
connects_to('later', 'database', database => 'template1');
connects_to('batch', 'weir.class comes before weir.class_map', user => 'worker', application_name => 'night_shift');
$app->query("SET application_name = 'nightly'");
is_of($app, 'batch', 'SET application_name');
$app->query("SET application_name = 'daily'");
is_of($app, 'report', 'and back');
$app->query('BEGIN');
$app->query("SET application_name = 'nightly'");
is($app->class($admin), 'report', 'not within a transaction');
$app->query('ROLLBACK');
is_of($app, 'report', 'which takes the name back');
reconfigure($admin, 'weir.class_map' => 'role=app => nonsense');
is_of($app, 'default', 'a rule may name a class that does not exist');
reconfigure($admin, 'weir.class_map' => '');

# ---- a class's own limit

my @workers = map { app_of($node, user => 'worker') } 1 .. 5;
my @apps = map { app_of($node) } 1 .. 4;
reconfigure($admin, 'weir.classes' => 'batch: max_active=2', 'weir.max_active' => 20);
$_->query('BEGIN') foreach @workers[ 0, 1 ];
$workers[2]->send('BEGIN');
wait_for_waiting($admin, 1);
answers_at_once($apps[0], 'SELECT 1', 'max_active: other classes are let in');
is($admin->value("SELECT concat_ws(' ', max_active, active, waiting) FROM weir.stat_class WHERE class = 'batch'"), '2 2 1', 'weir.stat_class');
$workers[0]->query('COMMIT');
is($workers[2]->answer->{tag}, 'BEGIN', 'max_active: the next of the class');
$_->query('COMMIT') foreach @workers[ 1, 2 ];
nothing_left($admin, "after a class's limit");

# ---- reserved slots

reconfigure($admin, 'weir.classes' => 'default: reserved=2; batch: weight=1000', 'weir.max_active' => 4);
$workers[$_]->send('BEGIN') foreach 0 .. 4;
wait_for_waiting($admin, 3);
is(admission($admin, 'active'), 2, 'reserved: the others fill the rest');
$_->query('BEGIN') foreach @apps[ 0, 1 ];
is(join(' ', map { $_->state($admin) } @apps[ 0, 1 ]), 'active active', 'reserved: the class gets in, past those who wait');
is(admission($admin, 'active'), 4, 'not over the limit');
$apps[2]->send('BEGIN');
wait_for_waiting($admin, 4);
$apps[0]->query('COMMIT');
is($apps[2]->answer->{tag}, 'BEGIN', 'reserved: the next of the class takes its place');
wait_for_waiting($admin, 3);
$apps[1]->query('COMMIT');
is($admin->value("SELECT concat_ws(' ', active, (SELECT waiting FROM weir.stat_class WHERE class = 'batch')) FROM weir.stat_admission"),
	'3 3', 'reserved: an empty reserve is not lent to others');
$apps[2]->query('COMMIT');
foreach (1 .. 5)
{
	my ($next) = grep { $_->state($admin) eq 'active' } @workers;
	$next->answer;
	$next->query('COMMIT');
}
nothing_left($admin, 'after reserves');

# ---- queue_size and queue_timeout of a class

reconfigure($admin, 'weir.classes' => 'batch: queue_size=1 queue_timeout=300ms', 'weir.max_active' => 1);
$apps[0]->query('BEGIN');
$apps[1]->send('BEGIN');
wait_for_waiting($admin, 1);
$workers[0]->send('SELECT 1');
wait_for_waiting($admin, 2);
is_refused($workers[1]->send('SELECT 1')->answer, qr/^Waiting in class "batch": 1, its queue_size is 1\.$/, "a class's queue is full");
is_refused($workers[0]->answer, qr/^Transactions that run: 1, the limit is 1 \(weir\.max_active\); waiting: 1, of them in class "batch": 0\.$/,
	"a class's queue_timeout");
$apps[2]->send('BEGIN');
wait_for_waiting($admin, 2);
pass('other classes queue and wait as ever');
is($admin->value("SELECT concat_ws(' ', queue_size, queue_timeout, refused, timed_out) FROM weir.stat_class WHERE class = 'batch'"),
	'1 00:00:00.3 1 1', 'weir.stat_class');
is($admin->value("SELECT concat_ws(' ', queue_size IS NULL, refused, timed_out) FROM weir.stat_class WHERE class = 'default'"),
	't 0 0', 'weir.stat_class, another class');
reconfigure($admin, 'weir.classes' => 'batch: max_active=1', 'weir.max_active' => 20);
is($_->answer->{tag}, 'BEGIN', 'who waited gets in when the limit is raised') foreach @apps[ 1, 2 ];
reconfigure($admin, 'weir.queue_timeout' => '300ms');
$workers[0]->query('BEGIN');
is_refused($workers[1]->send('SELECT 1')->answer,
	qr/^Class "batch" runs 1 of at most 1 transactions \(its max_active\); waiting in it: 0\.$/, "refused by a class's own limit");
$_->query('COMMIT') foreach $workers[0], @apps[ 0 .. 2 ];
nothing_left($admin, 'after queue_size and queue_timeout');
$_->close foreach @workers, @apps[ 2, 3 ];

# ---- weights: two classes that always wait

reconfigure($admin, 'weir.classes' => 'default: weight=3; batch: weight=1', 'weir.max_active' => 2);
$_->query('BEGIN') foreach @apps[ 0, 1 ];
my $script = "$PostgreSQL::Test::Utils::tmp_check/weights.sql";
append_to_file($script, "SELECT pg_sleep(0.002);\n");
my @benches = map {
	IPC::Run::start(
		[ 'pgbench', '-n', '-c', 16, '-j', 1, '-t', 150, '-f', $script, '-h', $node->host, '-p', $node->port, '-U', $_, 'postgres' ],
		'>', '/dev/null', '2>&1', IPC::Run::timeout(60))
} 'app', 'worker';
wait_for_waiting($admin, 32);
$admin->query('SELECT weir.reset()');
$_->query('COMMIT') foreach @apps[ 0, 1 ];
my ($heavy, $light) = (0, 0);
poll_until(
	'1500 admitted',
	sub {
		($heavy, $light) = @{ $admin->query("SELECT max(admitted) FILTER (WHERE class = 'default'), max(admitted) FILTER (WHERE class = 'batch')
			FROM weir.stat_class")->[0] };
		$heavy + $light >= 1500;
	});
note("$heavy and $light");
cmp_ok(abs($heavy / ($light || 1) - 3), '<', 0.45, 'weights 3 and 1: three times as many are admitted');
reconfigure($admin, 'weir.max_active' => 0);
ok($_->finish, 'pgbench ends') foreach @benches;
nothing_left($admin, 'in the end');

no_warnings($node, 'no warning in the log of the server');

done_testing();
