# Where reads go: a standby whose replay stands still is not offered any more, puts itself into quarantine, and its new clients
# go to the other one; when replay goes on it comes back. Promotion ends a quarantine at once.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.max_active' => 0,
	'weir.max_startups' => 0,
	'weir.lag_sample_interval' => '20ms',
	'weir.heartbeat_interval' => '100ms',
	'weir.quarantine_lag' => '2s',
	'weir.quarantine_hold' => '500ms');
my $admin = admin_of($primary);
$admin->query($_)
  foreach 'CREATE ROLE monitoring LOGIN IN ROLE pg_monitor', 'CREATE ROLE shipper LOGIN REPLICATION';
$primary->backup('base');

sub standby_of
{
	my ($name, $application_name) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	my $conninfo = $primary->connstr . " application_name=$application_name";
	$conninfo =~ s/'/''/g;
	$standby->append_conf('postgresql.conf', "primary_conninfo = '$conninfo'\nweir.region = '" . $application_name =~ s,/.*,,r . "'");
	$standby->start;
	return $standby;
}

my $eu = standby_of('eu', 'eu/one');
my $us = standby_of('us', 'us/one');
my ($eu_admin, $us_admin) = map { admin_of($_) } $eu, $us;

sub targets
{
	my ($arguments) = @_;
	return join ' ', map { $_->[0] } @{ $admin->query('SELECT application_name FROM weir.read_targets(' . ($arguments // '') . ') ORDER BY 1') };
}

sub wait_for_targets
{
	my ($arguments, $wanted) = @_;
	return poll_until("targets are $wanted", sub { targets($arguments) eq $wanted });
}

sub quarantine
{
	my ($session, $columns) = @_;
	return $session->value("SELECT $columns FROM weir.stat_quarantine");
}

sub wait_for_state
{
	my ($session, $state) = @_;
	return poll_until("it is $state", sub { quarantine($session, 'state') eq $state });
}

# What the server says to a connection's startup: the SQLSTATE, or nothing.
sub refusal
{
	my ($node, %options) = @_;
	my $session = PgWeir::Session->new($node, async => 1, %options);
	my $answer = $session->answer // die 'no answer';
	$session->close;
	return $answer;
}

# The port of the server that libpq has chosen, or its error.
sub psql_goes_to
{
	my ($attributes, @nodes) = @_;
	my $conninfo = sprintf "host=%s port=%s user=app dbname=postgres target_session_attrs=%s",
	  join(',', map { $_->host } @nodes), join(',', map { $_->port } @nodes), $attributes;
	my ($out, $err) = run_command([ 'psql', '-XAtd', $conninfo, '-c', 'SHOW port' ]);
	return $out ne '' ? $out : $err;
}

# ---- what is offered

wait_for_targets(q{'1s'}, 'eu/one us/one');
is($admin->value(q{SELECT concat_ws(' ', application_name, region, node, state, address IS NULL, weight BETWEEN 1 AND 100,
		replay_lag <= '1s', replay_lag_bytes >= 0, replay_lsn <= pg_current_wal_lsn())
	FROM weir.read_targets('1s', 'eu')}), 'eu/one eu one streaming t t t t t', 'a target, and the region that was asked for');
is(targets(q{NULL, 'us'}), 'us/one', 'without a bound');
is(targets(q{NULL, 'mars'}), '', 'a region without standbys');
is(targets(q{NULL, ''}), '', 'none is without a region');
$admin->query(q{ALTER SYSTEM SET weir.lag_replicas = 'us/*'});
$admin->query('SELECT pg_reload_conf()');
wait_for_targets('', 'us/one');
pass('those that weir.lag_replicas lists');
$admin->query('ALTER SYSTEM RESET weir.lag_replicas');
$admin->query('SELECT pg_reload_conf()');
wait_for_targets('', 'eu/one us/one');

my $app = app_of($primary);
is($admin->send(q{SELECT weir.read_targets('-1s')})->answer->{code}, '22023', 'a negative bound');
is($app->send('SELECT weir.read_targets()')->answer->{code}, '42501', 'not for everybody');
$admin->query('GRANT EXECUTE ON FUNCTION weir.read_targets(interval, text) TO app');
is($app->value('SELECT count(*) FROM weir.read_targets()'), 2, 'but for whom it was granted to');
my $answer = $us_admin->send('SELECT weir.read_targets()')->answer;
is($answer->{code}, '55000', 'not on a standby');
isnt($answer->{hint}, '', 'with a hint');
is(quarantine($admin, q{concat_ws(' ', state, refusing, replay_lag)}), 'primary f', 'a primary has no quarantine');
# One that has just started was behind.
foreach my $standby_admin ($eu_admin, $us_admin)
{
	wait_for_state($standby_admin, 'open');
	$standby_admin->query('SELECT weir.reset()');
}
is(quarantine($us_admin, q{concat_ws(' ', state, refusing, quarantine_lag, region, changes)}), 'open f 00:00:02 us 0', 'a standby that is up to date');

# ---- replay stands still

my $reader = app_of($us);
my $log_from = -s $us->logfile;
$us_admin->query('SELECT pg_wal_replay_pause()');
wait_for_targets(q{'1s'}, 'eu/one');
pass('it is not offered any more');
wait_for_state($us_admin, 'quarantined');
is(quarantine($us_admin, q{concat_ws(' ', refusing, replay_lag > quarantine_lag, hold_left > '0', changes)}), 't t t 1', 'it is in quarantine');
wait_for_targets(q{'1h'}, 'eu/one');
pass('who refuses readers is not offered, whatever the bound');

my $refused = refusal($us);
is("$refused->{severity} $refused->{code}", 'FATAL 57P03', 'a new connection is refused');
like($refused->{detail}, qr/^Its replay lag is [0-9.]+ s, and was over weir.quarantine_lag \(2\.0 s\) [0-9.]+ s ago\.$/, 'with the lag');
like($refused->{hint}, qr/another server.* within that for 0\.5 s/, 'and where to go');
is(refusal($us, user => scalar getpwuid($>))->{code}, '', 'a superuser is let in');
is(refusal($us, user => 'monitoring')->{code}, '', 'monitoring is');
is(refusal($us, user => 'shipper', replication => 'true')->{code}, '', 'replication is');
is($reader->value('SELECT 1'), 1, 'a session that was there goes on');
is(quarantine($us_admin, 'refused'), 1, 'counted');

is(psql_goes_to('any', $us, $eu), $eu->port, 'libpq goes to the next host');
is(psql_goes_to('prefer-standby', $primary, $us, $eu), $eu->port, 'and finds the other standby');
is(psql_goes_to('prefer-standby', $us, $primary), $primary->port, 'or the primary');
like(psql_goes_to('any', $us), qr/this standby is in quarantine because.*weir\.quarantine_lag/s, 'psql says why');
command_checks_all([ 'pg_isready', '-h', $us->host, '-p', $us->port, '-U', 'app' ], 1, [qr/rejecting connections/], [qr/^$/], 'pg_isready says so');

# ---- who decides

reconfigure($us_admin, 'weir.mode' => 'observe');
$us_admin->query('SELECT weir.reset()');
is(refusal($us)->{code}, '', 'observe: nobody is refused');
is(quarantine($us_admin, q{concat_ws(' ', state, refusing, refused)}), 'quarantined f 1', 'who would have been is counted');
reconfigure($us_admin, 'weir.mode' => 'enforce');

my $sampler_of = q{SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'pg_weir sampler'};
my $sampler = $us_admin->value($sampler_of);
$us_admin->query("SELECT pg_terminate_backend($sampler)");
poll_until('a new sampler', sub { $us_admin->value("SELECT ($sampler_of) NOT IN (0, $sampler)") eq 't' });
is(refusal($us)->{code}, '57P03', 'a new sampler goes on with the quarantine');
$sampler = $us_admin->value($sampler_of);
kill STOP => $sampler;
poll_until('nobody is refused', sub { refusal($us)->{code} eq '' });
pass('lag that is not sampled any more refuses nobody');
kill CONT => $sampler;
poll_until('and again', sub { refusal($us)->{code} eq '57P03' });

# ---- replay goes on

$us_admin->query('SELECT pg_wal_replay_resume()');
wait_for_state($us_admin, 'open');
is(refusal($us)->{code}, '', 'it takes connections again');
wait_for_targets('', 'eu/one us/one');
is(psql_goes_to('any', $us, $eu), $us->port, 'libpq is back');
is(() = slurp_file($us->logfile, $log_from) =~ /this standby is in quarantine: its replay lag is/g, 1, 'logged once when it began');
is(() = slurp_file($us->logfile, $log_from) =~ /quarantine of this standby ended after [0-9.]+ s: its replay lag is/g, 1, 'and once when it ended');

# ---- ends with its reason

$us_admin->query('SELECT pg_wal_replay_pause()');
wait_for_state($us_admin, 'quarantined');
reconfigure($us_admin, 'weir.quarantine_lag' => 0);
wait_for_state($us_admin, 'off');
is(refusal($us)->{code}, '', 'switched off');
reconfigure($us_admin, 'weir.quarantine_lag' => '2s');
wait_for_state($us_admin, 'quarantined');
is(refusal($us)->{code}, '57P03', 'and on');
$us_admin->query('SELECT pg_promote(false)');
my $took_s = poll_until('nobody is refused', sub { refusal($us)->{code} eq '' });
wait_for_state($us_admin, 'primary');
is(quarantine($us_admin, 'refusing'), 'f', 'promotion ends it');
note(sprintf 'promotion until the first connection: %.2f s', $took_s);
like(slurp_file($us->logfile, $log_from), qr/quarantine of this server ended after [0-9.]+ s: it was promoted/, 'logged, with the reason');
is($us_admin->value('SELECT count(*) FROM weir.read_targets()'), 0, 'a primary without standbys offers none');

done_testing();
