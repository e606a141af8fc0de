# The HTTP endpoint: who asks gets an answer, whatever else goes on, and whatever is sent to it.

use strict;
use warnings;

use Http;
use IO::Select;
use IO::Socket::INET;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node('http', 'weir.max_active' => 8, 'weir.classes' => 'reports: weight=2 max_active=1',
	'restart_after_crash' => 'on');
my $admin = admin_of($node);
my $port = PostgreSQL::Test::Cluster::get_free_port();

sub worker_pid
{
	return admin_of($node)->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir http'");
}

# ---- off, unless it is asked for

is(worker_pid(), '', 'off by default');
is($admin->value('SHOW weir.http_listen_address'), '127.0.0.1', 'on loopback by default');
foreach my $bad ([ 'weir.http_listen_address', 'localhost' ], [ 'weir.http_listen_address', '*' ], [ 'weir.http_port', '65536' ])
{
	my $answer = $admin->send("ALTER SYSTEM SET $bad->[0] = '$bad->[1]'")->answer;
	is($answer->{code}, '22023', "$bad->[0] = $bad->[1] is refused");
}
reconfigure($admin, 'weir.http_port' => $port);
http_serves($port);
like(worker_pid(), qr/^\d+$/, 'a reload starts it');
ok($node->log_contains(qr/pg_weir: the HTTP endpoint listens on "127.0.0.1", port $port/), 'and the log says where');

# A request that never comes: it is asked for at the end.
my $silent = http_open($port);

# ---- health

my $health = http_get($port, '/health');
is($health->{status}, 200, '/health');
like($health->{body}, qr/^\{"role": "primary", "timeline": 1, "lsn": "\w+\/\w+", "mode": "enforce", "launcher": true\}\n$/, 'in JSON');
like($health->{head}, qr/^Content-Type: application\/json\r$/m, 'and says so');
is(http_get($port, '/primary')->{status}, 200, '/primary');
my $replica = http_get($port, '/replica?lag=10s');
is($replica->{status}, 503, '/replica of a primary');
like($replica->{body}, qr/"reason": "this is a primary"/, 'with the reason');
is(http_answer($port, "OPTIONS /primary HTTP/1.0\r\n\r\n")->{status}, 200, 'as HAProxy asks');
my $head = http_answer($port, "HEAD /primary HTTP/1.1\r\nConnection: close\r\n\r\n");
is("$head->{status} $head->{body}", '200 ', 'HEAD has no body');

# ---- metrics

my $app = app_of($node);
$app->query('SELECT 1') foreach 1 .. 3;
my $metrics = http_metrics($port);
is($metrics->{'pg_weir_mode{mode="enforce"}'}, 1, 'the mode');
is($metrics->{'pg_weir_mode{mode="off"}'}, 0, 'and which it is not');
is($metrics->{'pg_weir_transactions_limit'}, 8, 'the limit');
cmp_ok($metrics->{'pg_weir_transactions_admitted_total{class="default"}'}, '>=', 3, 'transactions are counted');
is($metrics->{'pg_weir_transactions_admitted_total{class="reports"}'}, 0, 'and those of a class that has none');
is($metrics->{'pg_weir_launcher_up'}, 1, 'the launcher is up');
is($metrics->{'pg_weir_in_recovery'}, 0, 'it is a primary');
is($metrics->{'pg_weir_metrics_truncated'}, 0, 'all of it is there');
cmp_ok($metrics->{'pg_weir_http_answers_total{code="5xx"}'}, '>=', 1, 'the endpoint counts its own answers');

# A wait is a histogram.
$admin->query("ALTER ROLE app SET weir.class = 'reports'");
my ($holder, $waiter) = (app_of($node), app_of($node));
$holder->query('BEGIN');
waits_for_slot($admin, $waiter->send('SELECT 1'), 'one report beside the other', sub { $holder->query('COMMIT') });
$metrics = http_metrics($port);
is($metrics->{'pg_weir_transaction_wait_seconds_count{class="reports"}'}, 1, 'a wait is counted');
is($metrics->{'pg_weir_transaction_wait_seconds_bucket{class="reports",le="+Inf"}'}, 1, 'in its bucket');
cmp_ok($metrics->{'pg_weir_transaction_wait_seconds_sum{class="reports"}'}, '>', 0, 'with its length');

my $text = http_get($port, '/metrics');
like($text->{head}, qr/^Content-Type: text\/plain; version=0\.0\.4; charset=utf-8\r$/m, "Prometheus's text format");
is(promtool_metrics($text->{body}), '', 'promtool finds nothing wrong with it');
isnt(promtool_metrics($text->{body} . "pg_weir_in_recovery{ 1\n"), '', 'and it would');
is($admin->value(q{SELECT string_agg(line, ';') FROM regexp_split_to_table(weir.metrics(), E'\n') AS line WHERE line ~ '^# TYPE'}),
	join(';', $text->{body} =~ /^(# TYPE.*)$/mg), 'weir.metrics() has the same families');

# ---- jobs that ask before they write; more in 350_haproxy.pl

my $check = http_get($port, '/throttle/check?app=backfill');
is($check->{status}, 404, 'a server that has just started does not know yet who follows it');
like($check->{body}, qr/^\{"app": "backfill", "allowed": false, "code": "unknown", /, 'and says so');
is(http_get($port, '/throttle/check')->{status}, 400, 'a job without a name is told to give one');
is(http_metrics($port)->{'pg_weir_throttle_checks_total{code="unknown"}'}, 1, 'checks are counted');

# ---- what it must not mind

foreach my $case (
	[ 404, "GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n", 'no such path' ],
	[ 400, "GET /replica?lga=2s HTTP/1.1\r\nConnection: close\r\n\r\n", 'no such parameter' ],
	[ 400, "GET /replica?min_lsn=x HTTP/1.1\r\nConnection: close\r\n\r\n", 'a malformed LSN' ],
	[ 405, "DELETE /primary HTTP/1.1\r\nConnection: close\r\n\r\n", 'no such method' ],
	[ 400, "rubbish\r\n\r\n", 'no HTTP' ],
	[ 413, "GET /health HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", 'a body' ],
	[ 431, "GET /" . ('x' x 10_000) . " HTTP/1.1\r\n\r\n", 'a long target' ],
	[ 431, "GET / HTTP/1.1\r\n" . join('', map { "X-$_: " . ('y' x 100) . "\r\n" } 1 .. 2000) . "\r\n", 'many headers' ])
{
	my $answer = http_answer($port, $case->[1]);
	is($answer->{status}, $case->[0], "$case->[2]: $case->[0]");
}
my @crowd = map { my $s = http_open($port); syswrite($s, "GET /hea") if $s; $s } 1 .. 200;
my $began = Time::HiRes::time();
is(http_get($port, '/primary')->{status}, 200, 'beside 200 that are half done');
cmp_ok(Time::HiRes::time() - $began, '<', $PgWeir::at_once_s, 'at once');
cmp_ok(http_metrics($port)->{'pg_weir_http_connections'}, '<=', 64, 'there are never more than 64');
@crowd = ();

# ---- settings, and other programs' ports

my $taken = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1) or die "listen: $!";
reconfigure($admin, 'weir.http_port' => $taken->sockport);
poll_until('the log says that the port is taken',
	sub { $node->log_contains(qr/LOG:  pg_weir: the HTTP endpoint cannot listen on "127.0.0.1", port ${\$taken->sockport}: Address already in use/) });
ok($node->log_contains(qr/HINT:  Is another program on that port\?/), 'a port that is taken: a line in the log, with a hint');
is(http_get($port, '/health')->{status}, 0, 'the old port is given back');
is(app_of($node)->value('SELECT 1'), 1, 'and everything else works');
my $other = $taken->sockport;
close $taken;
$admin->query('SELECT pg_reload_conf()');
http_serves($other);
pass('it takes the port when that is free');

my $pid = worker_pid();
$admin->query("SELECT pg_terminate_backend($pid)");
poll_until('another one comes', sub { worker_pid() =~ /^\d+$/ && worker_pid() != $pid });
http_serves($other);
pass('it comes back when it was terminated');

kill 'KILL', worker_pid();
poll_until('the server restarts', sub { $node->log_contains(qr/all server processes terminated; reinitializing/) });
poll_until('it is up', sub { eval { admin_of($node)->value('SELECT 1') } });
http_serves($other);
is(scalar @{ admin_of($node)->query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir http'") },
	1, 'after a crash there is one again, and only one');

$admin = admin_of($node);
reconfigure($admin, 'weir.http_port' => 0);
poll_until('it ends', sub { worker_pid() eq '' });
is(http_get($other, '/health')->{status}, 0, 'port 0 ends it');
reconfigure($admin, 'weir.http_port' => $port, 'weir.http_listen_address' => '::1');
poll_until('it listens on ::1', sub { $node->log_contains(qr/listens on "::1", port $port/) || $node->log_contains(qr/cannot listen on "::1"/) });
reconfigure($admin, 'weir.http_listen_address' => '127.0.0.1');
http_serves($port);

# ---- the silent one, and the end

PgWeir::poll_until('the silent one is closed', sub { IO::Select->new($silent)->can_read(0.1) });
ok(!sysread($silent, my $nothing, 1), 'who sends nothing is hung up on');

$began = Time::HiRes::time();
$node->restart;
http_serves($port);
cmp_ok(Time::HiRes::time() - $began, '<', 10, 'it does not hold up a shutdown, and starts with the server');
$pid = worker_pid();
$node->kill9;
poll_until('the worker is gone, too', sub { !kill(0, $pid) });
is(http_get($port, '/health')->{status}, 0, 'a server whose postmaster died is not healthy');

done_testing();
