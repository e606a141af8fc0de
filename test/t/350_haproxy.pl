# HAProxy in front of a primary and two standbys, which it knows by their health checks alone. A standby that falls behind
# leaves the rotation and comes back; a promotion moves the writes. Clients come and go meanwhile, and are counted.

use strict;
use warnings;

use Http;
use IO::Socket::INET;
use IO::Socket::UNIX;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $haproxy = '/usr/sbin/haproxy';
plan(skip_all => 'there is no HAProxy') unless -x $haproxy;

my %http = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(a b c writes reads);
my %common = (
	'weir.max_active' => 0,
	'listen_addresses' => '127.0.0.1',
	'weir.lag_sample_interval' => '50ms',
	'weir.heartbeat_interval' => '200ms');
my $a = gated_node('a', %common, node => { allows_streaming => 1 }, 'weir.http_port' => $http{a});
$a->backup('base');
my %node = (a => $a);
foreach my $name (qw(b c))
{
	$node{$name} = PostgreSQL::Test::Cluster->new($name);
	$node{$name}->init_from_backup($a, 'base', has_streaming => 1);
	$node{$name}->append_conf('postgresql.conf', "weir.http_port = $http{$name}");
	$node{$name}->start;
}
my %name_of = map { $node{$_}->port => $_ } keys %node;

# ---- HAProxy

my $directory = PostgreSQL::Test::Utils::tempdir_short();
my $servers = join '', map { "    server $_ 127.0.0.1:${\$node{$_}->port} check port $http{$_}\n" } sort keys %node;
append_to_file("$directory/haproxy.cfg", <<"CONFIGURATION");
global
    stats socket $directory/stats
defaults
    mode tcp
    timeout connect 2s
    timeout client 1m
    timeout server 1m
    timeout check 2s
    option redispatch
listen writes
    bind 127.0.0.1:$http{writes}
    option httpchk OPTIONS /primary
    default-server inter 200ms fastinter 100ms fall 2 rise 1 on-marked-down shutdown-sessions
$servers
listen reads
    bind 127.0.0.1:$http{reads}
    balance roundrobin
    option httpchk OPTIONS /replica?lag=1s
    default-server inter 200ms fastinter 100ms fall 2 rise 2
$servers
CONFIGURATION
my $proxy = IPC::Run::start([ $haproxy, '-db', '-f', "$directory/haproxy.cfg" ], '>', "$directory/log", '2>&1');
END { local $?; $proxy->kill_kill(grace => 1) if defined $proxy }

# Servers of a backend that are up, as HAProxy sees them: "a", or "b c".
sub up
{
	my ($backend) = @_;
	my $socket = IO::Socket::UNIX->new("$directory/stats") or return '';
	syswrite($socket, "show stat\n");
	local $/;
	my @rows = map { [ split /,/ ] } split /\n/, scalar <$socket>;
	return join ' ', sort map { $_->[1] } grep { $_->[0] eq $backend && length $_->[1] == 1 && $_->[17] =~ /^UP/ } @rows;
}

sub wait_for_up
{
	my ($backend, $servers, $name) = @_;
	my $took_s = poll_until("$backend: $servers", sub { up($backend) eq $servers });
	return note(sprintf('%s: %.2f s', $name // "$backend: $servers", $took_s));
}

# One client: connects, runs this, leaves. Where it was served; '' if it was not.
sub served
{
	my ($backend, $sql) = @_;
	my $port = eval {
		my $socket = IO::Socket::INET->new("127.0.0.1:$http{$backend}") or die 'not connected';
		my $session = PgWeir::Session->new(undef, socket => $socket);
		$session->query($sql) if $sql;
		my $where = $session->value('SHOW port');
		$session->close;
		$where;
	};
	return $port ? $name_of{$port} : '';
}

# So many clients, one after the other: how many were served where, "b 5 c 5"; "- 3": not at all.
sub clients
{
	my ($backend, $count, $sql) = @_;
	my %where;
	$where{ served($backend, $sql) || '-' }++ foreach 1 .. $count;
	return join ' ', map { "$_ $where{$_}" } sort keys %where;
}

# A test: reads are spread so. On a busy machine a check may be late, and a server that is well out for a moment.
sub reads_go_to
{
	my ($count, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $spread;
	eval { poll_until($name, sub { ($spread = clients('reads', $count, 'SELECT count(*) FROM t')) eq $expected }) };
	return is($spread, $expected, $name);
}

wait_for_up('writes', 'a');
wait_for_up('reads', 'b c');
$a->safe_psql('postgres', 'CREATE TABLE t (i int); GRANT ALL ON t TO app');
$a->wait_for_catchup($_) foreach qw(b c);
is(clients('writes', 4, 'INSERT INTO t VALUES (1)'), 'a 4', 'writes go to the primary');
reads_go_to(8, 'b 4 c 4', 'reads go to the standbys');

# ---- jobs that ask before they write

my $check = http_get($http{a}, '/throttle/check?app=backfill');
is($check->{status}, 200, 'a job may go on');
like($check->{body}, qr/^\{"app": "backfill", "allowed": true, "code": "ok", /, 'and is told so');
$a->safe_psql('postgres', "SELECT weir.throttle_app('back*', 1, '1 hour')");
$check = http_get($http{a}, '/throttle/check?app=backfill');
is($check->{status}, 417, 'one that is denied may not');
like($check->{body}, qr/"allowed": false, "code": "denied"/, 'and is told why');
is(http_get($http{a}, '/throttle/check?app=other')->{status}, 200, 'another may');
is(http_metrics($http{a})->{'pg_weir_throttle_checks_total{code="denied"}'}, 1, 'which is counted');

# ---- a standby falls behind

my %reads;
$node{b}->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
my $began = Time::HiRes::time();
poll_until(
	'b leaves the rotation',
	sub {
		served('writes', 'INSERT INTO t VALUES (2)');
		$reads{ served('reads', 'SELECT count(*) FROM t') || '-' }++;
		up('reads') eq 'c';
	});
note(sprintf('b left after %.2f s; reads meanwhile: %s', Time::HiRes::time() - $began, join ' ', map { "$_ $reads{$_}" } sort keys %reads));
is($reads{'-'}, undef, 'no read failed while b fell behind');
cmp_ok(Time::HiRes::time() - $began, '<', 5, 'b leaves soon after its lag has passed the bound');
reads_go_to(6, 'c 6', 'reads go to the other one');
my $answer = http_get($http{b}, '/replica?lag=1s');
is($answer->{status}, 503, 'b says so');
like($answer->{body}, qr/"state": "paused".*"reason": "lag in time is beyond the bound"/, 'and why');
is(http_get($http{b}, '/throttle/check?app=job')->{status}, 404, 'a standby does not speak for the primary');
is(http_get($http{b}, '/replica?lag=1h')->{status}, 200, 'to who bears more lag it is a replica');
$node{b}->append_conf('postgresql.conf', "weir.quarantine_lag = 500ms\nweir.quarantine_hold = 0");
$node{b}->reload;
poll_until('in quarantine it is nobody\'s', sub { http_get($http{b}, '/replica?lag=1h')->{status} == 503 });
like(http_get($http{b}, '/replica')->{body}, qr/"reason": "in quarantine: weir.quarantine_lag"/, 'in quarantine, and says so');
is(http_metrics($http{b})->{pg_weir_quarantined}, 1, 'as its metrics do');

$node{b}->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
wait_for_up('reads', 'b c', 'b is back');
reads_go_to(6, 'b 3 c 3', 'it returns');

# ---- the primary dies, a standby is promoted

my $lsn = $a->safe_psql('postgres', 'SELECT pg_current_wal_flush_lsn()');
poll_until('b has replayed it', sub { http_get($http{b}, "/replica?min_lsn=$lsn")->{status} == 200 });
is(http_get($http{b}, '/replica?min_lsn=FFFFFFFF/0')->{status}, 503, 'not what is yet to come');
my $writer = PgWeir::Session->new(undef, socket => IO::Socket::INET->new("127.0.0.1:$http{writes}"));
$writer->query('INSERT INTO t VALUES (3)');
$a->stop('immediate');
$began = Time::HiRes::time();
$node{b}->promote;
$node{c}->append_conf('postgresql.conf', "primary_conninfo = '${\$node{b}->connstr} application_name=c'");
$node{c}->reload;
my %writes;
%reads = ();
poll_until(
	'writes move',
	sub {
		my $where = served('writes', 'INSERT INTO t VALUES (4)');
		$writes{ $where || '-' }++;
		$reads{ served('reads', 'SELECT count(*) FROM t') || '-' }++;
		$where eq 'b';
	});
note(sprintf('writes moved after %.2f s; meanwhile writes: %s, reads: %s',
	Time::HiRes::time() - $began, join(' ', map { "$_ $writes{$_}" } sort keys %writes), join ' ', map { "$_ $reads{$_}" } sort keys %reads));
cmp_ok(Time::HiRes::time() - $began, '<', 10, 'soon');
is(join(' ', grep { /a/ } keys %writes), '', 'no write was served by the old primary');
wait_for_up('writes', 'b');
wait_for_up('reads', 'c');
is(clients('writes', 4, 'INSERT INTO t VALUES (5)'), 'b 4', 'writes go to the new primary');
reads_go_to(4, 'c 4', 'reads go to the standby that is left');
ok($writer->answer->{closed}, 'who had a session with the old primary is told');
$node{b}->wait_for_catchup('c');
is($node{c}->safe_psql('postgres', 'SELECT count(*) FROM t WHERE i = 5'), '4', 'which follows the new primary');
is(http_metrics($http{b})->{pg_weir_in_recovery}, 0, 'metrics know the new role');

done_testing();
