# Three PgBouncers in transaction mode before one server with pg_weir: when all are restarted at once, every pool comes
# back through the startup queue, and nothing is lost but what was being answered in that moment. And what PgBouncer
# makes of a server that refuses, and of one that makes it wait longer than it wants to. docs/pgbouncer.md says the same.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# scripts/check says which PgBouncer it found.
plan skip_all => 'no PgBouncer (PGBOUNCER names none)' unless -x ($ENV{PGBOUNCER} // '');

my @roles = map { "app$_" } 1 .. 6;
my $node = gated_node(
	'pooled',
	'weir.max_startups' => 1,
	'weir.max_active' => 4,
	'max_connections' => 100);
my ($admin, $locker) = map { admin_of($node) } 1, 2;
$admin->query($_)
  foreach 'CREATE TABLE seen (client int, n int)', 'GRANT ALL ON seen TO PUBLIC',
  map { "CREATE ROLE $_ LOGIN" } @roles;

my @bouncers = map { Bouncer->new($node, "bouncer$_", roles => [ 'app', @roles ], default_pool_size => 2) } 1 .. 3;
my @clients = map {
	my $bouncer = $_;
	map { Client->new($bouncer, $_ % @roles) } 1 .. 4 * @roles
} @bouncers;

# Lets all clients work until the condition holds.
sub work_until
{
	my ($what, $condition) = @_;
	return poll_until($what, sub { $_->step foreach @clients; $condition->() });
}

# ... until each of them has had so many answers more.
sub work
{
	my ($count) = @_;
	my %goal = map { $_ => $_->{answered} + $count } @clients;
	return work_until("$count answers for each client", sub { !grep { $_->{answered} < $goal{$_} } @clients });
}

sub restart_all
{
	$_->kill foreach @bouncers;
	$_->start foreach @bouncers;
	return;
}

# The pools that have a connection to the server.
sub pools_filled
{
	my $filled = 0;
	foreach my $bouncer (@bouncers)
	{
		my %users = map { $_ => 1 } $bouncer->served;
		$filled += keys %users;
	}
	return $filled;
}

sub nobody_was_turned_away
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($admin->value(q{SELECT concat_ws(' ', sum(refused), sum(timed_out), sum(client_gone), sum(terminated)) FROM weir.stat_startup}),
		'0 0 0 0', "$name: none refused, timed out, gone or ended");
}

# ---- every pool comes back at once, and waits

$_->start foreach @bouncers;
work(3);
is(pools_filled(), 18, 'eighteen pools work');
nobody_was_turned_away('at first');
$admin->query('SELECT weir.reset()');

{
	my $free = occupy_startup($node, $admin, $locker);
	restart_all();
	my $before = startup_value($admin, 'queued');
	work_until('a login of each pool waits', sub { startups_waiting($admin) == 18 });
	is($admin->value(q{SELECT string_agg(concat(role, ' ', n), ', ' ORDER BY role)
			FROM (SELECT role, count(*) AS n FROM weir.activity WHERE state = 'waiting to start' GROUP BY role) AS r}),
		join(', ', map { "$_ 3" } @roles), 'a login of each pool waits, and no more');
	is(pools_filled(), 0, 'no pool has a connection');
	$free->();
}
work(5);
is(pools_filled(), 18, 'all pools are filled again');
poll_until('the queue is empty', sub { startups_waiting($admin) == 0 });
nobody_was_turned_away('after the restart');
cmp_ok(startup_value($admin, 'queued'), '>=', 18, 'they had to wait');
poll_until('the storm is over', sub { $admin->value('SELECT count(*) FROM weir.storms WHERE ended IS NOT NULL') == 1 });
is($admin->value('SELECT peak_waiting FROM weir.storms'), 18, 'a storm is recorded: PgBouncer logs in once at a time for a pool');
like($admin->value('SELECT roles FROM weir.storms'), qr/^app\d \(\d+\), app\d/, 'with who came');
like($admin->value('SELECT applications FROM weir.storms'), qr/^"" \(\d+\)$/, 'who has no name as ""');

# ---- the same, at a rate, without anybody who holds up the first

{
	reconfigure($admin, 'weir.startup_rate' => 10);
	$admin->query('SELECT weir.reset()');
	restart_all();
	work_until('they wait', sub { startups_waiting($admin) >= 10 });
	work(5);
	is(pools_filled(), 18, 'at a rate: all pools are filled again');
	work_until('the queue is empty', sub { startups_waiting($admin) == 0 });
	nobody_was_turned_away('at a rate');
	reconfigure($admin, 'weir.startup_rate' => 0);
}

# ---- what was lost

$_->finish foreach @clients;
{
	my %seen = map { join(' ', @{$_}[ 0, 1 ]) => $_->[2] } @{ $admin->query('SELECT client, n, count(*) FROM seen GROUP BY 1, 2') };
	my (@missing, @twice, @unexplained, @errors);
	foreach my $client (@clients)
	{
		push @errors, @{ $client->{errors} };
		foreach my $n (1 .. $client->{sent})
		{
			my $times = delete $seen{"$client->{id} $n"} // 0;
			push @twice, "$client->{id} $n" if $times > 1;
			push @missing, "$client->{id} $n" if $times == 0 && !$client->{cut}{$n};
		}
		push @unexplained, $client->{id} if keys %{ $client->{cut} } > 2;
	}
	is("@missing", '', 'what was answered is there; only what was in flight may be missing');
	is("@twice", '', 'once');
	is(join(' ', keys %seen), '', 'and nothing else');
	is("@unexplained", '', 'nobody lost more than what was in flight at two restarts');
	is("@errors", '', 'nobody was told of an error');
	note(scalar(map { keys %{ $_->{cut} } } @clients) . ' queries were in flight');
}
$_->kill foreach @bouncers;
no_startups_left($admin, 'three PgBouncers');
nothing_left($admin, 'three PgBouncers');

# ---- a server that refuses

# Ends every connection that the bouncer has to the server.
sub empty_pools
{
	my ($bouncer) = @_;
	$admin->query(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'app%'});
	return poll_until('the pools are empty', sub { !$bouncer->served });
}

sub refused { return startup_value($admin, 'refused') }

# What a client is told that PgBouncer disconnects.
sub is_told
{
	my ($client, $what, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $client->answer;
	return is(join('|', @{$answer}{qw(code message detail hint closed)}), "$what|||1", $name);
}

# What older ones do is another story: those before 1.21 tell only who is logging in, and pass no SQLSTATE on.
SKIP:
{
	my ($version) = `$ENV{PGBOUNCER} --version` =~ /^PgBouncer 1\.(\d+)/;
	skip 'PgBouncer is older than 1.21', 16 if ($version // 0) < 21;

	my $bouncer = Bouncer->new($node, 'refused', roles => [ 'app', @roles ], default_pool_size => 2, server_login_retry => 1);
	$bouncer->start;
	my %connected = map { $_ => [ $bouncer->client($_), $bouncer->client($_) ] } qw(app1 app2 app4 app6);
	$_->query('SELECT 1') foreach map { @$_ } values %connected;
	empty_pools($bouncer);
	my ($busy, $mate) = @{ $connected{app6} };
	$busy->query('BEGIN');

	reconfigure($admin, 'weir.startup_queue_size' => 1);
	$admin->query('SELECT weir.reset()');
	my $free = occupy_startup($node, $admin, $locker);
	my ($direct) = queue_startups($node, $admin, 1);
	my $refusal = 'too many connections wait for their startup';

	my ($asks, $follows) = @{ $connected{app1} };
	$asks->send('SELECT 2');
	is_told($asks, "53300|$refusal", 'who waits in a pool without a connection gets the message and the SQLSTATE, nothing else');
	$follows->send('SELECT 2');
	is_told($follows, "08P01|server login has been failing, cached error: $refusal (server_login_retry)", 'who asks after that is told at once');
	is($bouncer->client('app1', async => 1)->answer->{code}, '', 'PgBouncer lets them in all the same, for it knows what a server of the pool says');
	is_told($bouncer->client('app5', async => 1), "53300|$refusal", 'but who logs in to a pool that never had one is told');
	my $tried = refused();
	is_told($bouncer->client('app5', async => 1), "53300|$refusal", 'so is the next');
	cmp_ok(refused(), '>', $tried, 'after another try');

	$mate->send('SELECT 3');
	$tried = refused();
	poll_until('PgBouncer has tried', sub { refused() >= $tried + 2 });
	ok(!$mate->answered, 'while a pool has one connection, its clients wait for that');
	$busy->query('COMMIT');
	is($mate->answer->{rows}[0][0], 3, 'and get it');

	# 57P03 is what a server says that is starting up: PgBouncer believes that it will come.
	reconfigure($admin, 'weir.startup_sqlstate' => '57P03');
	my ($patient, $second) = @{ $connected{app2} };
	$patient->send('SELECT 4');
	my $newcomer = $bouncer->client('app', async => 1);
	$tried = refused();
	poll_until('PgBouncer has tried', sub { refused() >= $tried + 4 });
	ok(!$patient->answered && !$newcomer->answered, 'refused with 57P03: PgBouncer tries on, and its clients wait');
	$second->send('SELECT 5');
	is_told($second, "08P01|server login has been failing, cached error: $refusal (server_login_retry)", 'except who asks after it failed');

	$free->();
	is($direct->answer->{code}, '', 'the one that waited in the server is served');
	is($patient->answer->{rows}[0][0], 4, 'and who waited in PgBouncer');
	is($newcomer->answer->{code}, '', 'and who came');
	is($connected{app4}[0]->value('SELECT 6'), 6, 'and who was silent all the time never knew');
	$direct->close;
	$bouncer->kill;
	reconfigure($admin, 'weir.startup_queue_size' => 0, 'weir.startup_sqlstate' => '53300');
	no_startups_left($admin, 'refused');
	nothing_left($admin, 'refused');
}

# ---- a PgBouncer that does not wait as long as the server would have it wait

{
	my $bouncer = Bouncer->new($node, 'hurried', roles => ['app'], server_connect_timeout => 1, server_login_retry => 1);
	$bouncer->start;
	my ($client, $other) = map { $bouncer->client('app') } 1 .. 2;
	$client->query('SELECT 1');
	empty_pools($bouncer);
	$admin->query('SELECT weir.reset()');
	my $free = occupy_startup($node, $admin, $locker);
	$client->send('SELECT 1');
	poll_until('PgBouncer has given up twice', sub { startup_value($admin, 'client_gone') >= 2 });
	ok(!$client->answered, 'server_connect_timeout: it loses its place again and again, its client waits');
	cmp_ok(startups_waiting($admin), '<=', 1, 'the places are given back');
	$other->send('SELECT 2');
	like($other->answer->{message}, qr/^server login has been failing, .*\(server_login_retry\)$/, 'another client is told so');
	$free->();
	is($client->answer->{rows}[0][0], 1, 'served as soon as the wait is short');
	$client->close;
	$bouncer->kill;
	no_startups_left($admin, 'hurried');
	nothing_left($admin, 'hurried');
}

# ---- a transaction that is refused

{
	my $bouncer = Bouncer->new($node, 'transactions', roles => \@roles);
	$bouncer->start;
	reconfigure($admin, 'weir.max_active' => 1, 'weir.queue_timeout' => '100ms');
	my ($holder, $client) = map { $bouncer->client($_) } qw(app1 app2);
	$holder->query('BEGIN');
	my $refused = $client->send('BEGIN')->answer;
	is_refused($refused, qr/^Transactions that run: 1, the limit is 1 \(weir\.max_active\)/, 'refused through PgBouncer');
	is($refused->{status}, 'I', 'the client stays connected');
	is(scalar(grep { $_ eq 'app2' } $bouncer->served), 1, 'and so does the connection to the server');
	reconfigure($admin, 'weir.reject_as' => 'fatal', 'weir.queue_timeout' => '110ms');
	# PgBouncer adds an error of its own, 08P01, to the server's.
	ok($client->send('BEGIN')->answer->{closed}, 'reject_as = fatal: the client is disconnected');
	poll_until('its connection to the server is gone', sub { !grep { $_ eq 'app2' } $bouncer->served });
	$holder->query('COMMIT');
	$bouncer->kill;
	reconfigure($admin, 'weir.max_active' => 4, 'weir.reject_as' => 'error');
	no_startups_left($admin, 'transactions');
	nothing_left($admin, 'transactions');
}

# ---- classes behind it

{
	reconfigure($admin,
		'weir.classes' => 'batch: weight=1; web: weight=8',
		'weir.class_map' => 'application_name=report* => batch; application_name=shop => web; role=app2 => web');
	my $bouncer = Bouncer->new($node, 'classes', roles => \@roles, default_pool_size => 1);
	$bouncer->start;
	my $admitted = sub {
		$admin->query('SELECT weir.reset()');
		$_[0]->value('SELECT 1');
		return $admin->value(q{SELECT string_agg(class, ' ') FROM weir.stat_class WHERE admitted > 0});
	};
	my @by_name = map { $bouncer->client('app1', application_name => $_) } 'report1', 'shop', 'other';
	is(join(' ', map { $admitted->($_) } @by_name, $by_name[0]), 'batch web default batch', 'by application_name, over one connection');
	is($admitted->($bouncer->client('app2', application_name => 'other')), 'web', 'by role');
	$admin->query(q{ALTER ROLE app3 SET weir.class = 'batch'});
	is($admitted->($bouncer->client('app3', application_name => 'shop')), 'batch', "by the role's weir.class");

	my $free = occupy_startup($node, $admin, $locker);
	my $new = $bouncer->client('app4', application_name => 'shop', async => 1);
	poll_until('its login waits', sub { startups_waiting($admin) == 1 });
	is($admin->value(q{SELECT concat_ws('|', role, application, class) FROM weir.activity WHERE state = 'waiting to start'}),
		'app4||default', 'at its own login PgBouncer has no application_name yet');
	$free->();
	is($new->answer->{code}, '', 'served');
	$bouncer->kill;

	my $hosts = Bouncer->new($node, 'hosts', roles => \@roles, application_name_add_host => 1);
	$hosts->start;
	is(join(' ', map { $admitted->($hosts->client('app1', application_name => $_)) } 'report1', 'shop'), 'batch default',
		'application_name_add_host: a pattern must end with *');
	$hosts->kill;
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '');
	no_startups_left($admin, 'classes');
	nothing_left($admin, 'classes');
}

$node->stop;
done_testing();

# A PgBouncer in a directory of its own, reached through a Unix socket there.
package Bouncer;

use PostgreSQL::Test::Utils;

my ($last_port, @all);

sub new
{
	my ($class, $node, $name, %settings) = @_;
	my $self = bless { directory => PostgreSQL::Test::Utils::tempdir_short(), port => ++($last_port //= 6431) }, $class;
	push @all, $self;
	my $roles = delete $settings{roles};
	my %all = (
		listen_addr => '',
		unix_socket_dir => $self->{directory},
		listen_port => $self->{port},
		auth_type => 'trust',
		auth_file => "$self->{directory}/users",
		admin_users => 'console',
		pool_mode => 'transaction',
		max_client_conn => 200,
		logfile => "$PostgreSQL::Test::Utils::log_path/$name.log",
		pidfile => "$self->{directory}/pid",
		%settings);
	my $host = $node->host;
	PostgreSQL::Test::Utils::append_to_file("$self->{directory}/ini",
		"[databases]\n* = host=$host port=" . $node->port . "\n[pgbouncer]\n" . join('', map { "$_ = $all{$_}\n" } sort keys %all));
	PostgreSQL::Test::Utils::append_to_file("$self->{directory}/users", join('', map { "\"$_\" \"\"\n" } 'console', @$roles));
	return $self;
}

# What PgWeir::Session wants to know of a node.
sub host { return $_[0]{directory} }
sub port { return $_[0]{port} }

# A session of this role in it.
sub client
{
	my ($self, $role, %options) = @_;
	return PgWeir::Session->new($self, user => $role, %options);
}

sub start
{
	my ($self) = @_;
	$self->{pid} = fork // die "fork: $!";
	if (!$self->{pid})
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', '/dev/null';
		exec $ENV{PGBOUNCER}, "$self->{directory}/ini" or POSIX::_exit(1);
	}
	PgWeir::poll_until('PgBouncer listens',
		sub { $self->{console} = eval { $self->client('console', database => 'pgbouncer') } });
	return;
}

# As a machine does that loses power; but the kernel closes its sockets.
sub kill
{
	my ($self) = @_;
	return unless $self->{pid};
	kill 'KILL', $self->{pid};
	waitpid $self->{pid}, 0;
	$self->{console}->vanish;
	delete @{$self}{qw(pid console)};
	return;
}

# The users of its connections to the server that have logged in, once for each.
sub served
{
	my ($self) = @_;
	return map { $_->[1] } grep { grep { /^(active|idle|used|tested)$/ } @$_ } @{ $self->{console}->query('SHOW SERVERS') };
}

END { local $?; $_->kill foreach @all }

# A program behind it: it puts one number after the other, and comes back when it is cut off.
package Client;

my $last_id;

sub new
{
	my ($class, $bouncer, $role) = @_;
	return bless {
		bouncer => $bouncer, role => $roles[$role], id => ++$last_id, sent => 0, answered => 0, cut => {}, errors => [] }, $class;
}

sub step
{
	my ($self) = @_;
	if (!$self->{session})
	{
		$self->{asked} = 0;
		$self->{session} = eval { $self->{bouncer}->client($self->{role}, async => 1) };
		return;
	}
	return unless $self->{session}->answered;
	my $answer = $self->{session}->answer;
	push @{ $self->{errors} }, "$answer->{code} $answer->{message}" if $answer->{code};
	if ($answer->{closed})
	{
		$self->{cut}{ $self->{sent} } = 1 if $self->{asked};
		delete $self->{session};
		return;
	}
	$self->{answered} += $self->{asked};
	$self->{asked} = 1;
	$self->{session}->send("INSERT INTO seen VALUES ($self->{id}, " . ++$self->{sent} . ')');
	return;
}

sub finish
{
	my ($self) = @_;
	my $answer = $self->{session} && $self->{asked} && $self->{session}->answer;
	push @{ $self->{errors} }, $answer ? "$answer->{code} $answer->{message}" : 'no answer' unless $answer && !$answer->{code};
	$self->{session}->close if $self->{session};
	return;
}
