# Connections wait, are let in, are refused and leave in the same way whatever authentication and encryption they use; a
# wrong password is a failed login. And startup packets of absurd sizes and contents do no harm, in the queue neither.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use PostgreSQL::Test::Utils;
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC);
use Test::More;
use Time::HiRes ();

my @children;    # what stands between a client and the server

my $node = gated_node(
	'authentication',
	node => { allows_streaming => 1 },
	'weir.max_startups' => 1,
	'weir.max_active' => 0,
	'max_connections' => 60,
	'authentication_timeout' => '120s',
	'listen_addresses' => '127.0.0.1',
	'log_connections' => 'on');
my ($admin, $locker) = map { admin_of($node) } 1, 2;
$admin->query($_)
  foreach q{SET password_encryption = 'md5'}, q{CREATE ROLE by_md5 LOGIN PASSWORD 'right'},
  q{SET password_encryption = 'scram-sha-256'}, q{CREATE ROLE by_scram LOGIN PASSWORD 'right'}, 'CREATE ROLE by_trust LOGIN', 'CREATE ROLE copyist LOGIN REPLICATION';

my $have_tls = !system('openssl req -new -x509 -nodes -days 2 -subj /CN=127.0.0.1 -keyout '
	  . $node->data_dir . '/server.key -out ' . $node->data_dir . '/server.crt >/dev/null 2>&1');
if ($have_tls)
{
	chmod 0600, $node->data_dir . '/server.key';
	$admin->query('ALTER SYSTEM SET ssl = on');
}
my $hba = $node->data_dir . '/pg_hba.conf';
my $trust = slurp_file($hba);
unlink $hba;
append_to_file($hba,
	"host all by_trust 127.0.0.0/8 trust\nhost all by_md5 127.0.0.0/8 md5\nhost all by_scram 127.0.0.0/8 scram-sha-256\n$trust");
reconfigure($admin, 'weir.startup_timeout' => '60s');

# ---- each method of authentication, without and with TLS

sub lost { return startup_value($admin, 'client_gone') }

# A test: a client that waits leaves in this way, and its place is free within a second.
sub leaves
{
	my ($method, $how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $relay = Relay->new($node);
	my ($leaver) = queue_startups($node, $admin, 1, $method->(relay => $relay));
	my $before = lost();
	$relay->end($how);
	happens_within(1, "$how: its place is free", sub { startups_waiting($admin) == 0 });
	return is(lost(), $before + 1, "$how: counted as client_gone");
}

sub try_method
{
	my ($name, $role, $method) = @_;
	note($name);
	$admin->query('SELECT weir.reset()');
	my $free = occupy_startup($node, $admin, $locker);
	my ($waiter) = queue_startups($node, $admin, 1, $method->());
	is($admin->value(q{SELECT concat_ws('|', role, database, state, class) FROM weir.activity WHERE state LIKE 'wait%'}),
		"$role|postgres|waiting to start|default", "$name: it waits");
	ok(!$waiter->answered, 'without an answer');

	reconfigure($admin, 'weir.startup_queue_size' => 1);
	my $refused = PgWeir::Session->new($node, async => 1, $method->())->answer;
	is("$refused->{severity} $refused->{closed}", 'FATAL 1', "$name: the second is refused");
	is_refused($refused, qr/^Waiting: 1, weir\.startup_queue_size is 1; class "default"\.$/, $name);
	reconfigure($admin, 'weir.startup_queue_size' => 0);

	$free->();
	is($waiter->answer->{code}, '', "$name: the first is let in");
	is($waiter->value('SELECT session_user'), $role, 'as who it is');
	$waiter->close;
	no_startups_left($admin, $name);

	$free = occupy_startup($node, $admin, $locker);
	leaves($method, $_) foreach qw(close reset);
	$free->();
	no_startups_left($admin, "$name, clients that left");

	return if $role eq 'by_trust';
	$admin->query('SELECT weir.reset()');
	is(PgWeir::Session->new($node, async => 1, $method->(password => 'wrong'))->answer->{code}, '28P01', "$name: a wrong password");
	is(startup_value($admin, 'admitted', 'failed_login') . ' ' . startup_value($admin, 'admitted'), '1 0', 'is a failed login, and no other');
	$free = occupy_startup($node, $admin, $locker);
	my ($failed) = queue_startups($node, $admin, 1, $method->(password => 'wrong'));
	is(startup_value($admin, 'waiting', 'failed_login'), 1, 'waits in its class');
	$free->();
	is($failed->answer->{code}, '28P01', 'and hears of it then');
	return no_startups_left($admin, "$name, wrong passwords");
}

foreach my $role (qw(by_trust by_md5 by_scram))
{
	my %who = (user => $role, password => 'right');
	try_method($role, $role, sub { my %with = @_; return (%who, tcp => 1, %with, $with{relay} ? (socket => $with{relay}->connect) : ()) });
  SKIP:
	{
		skip 'openssl made no certificate', 1 unless $have_tls;
		try_method("$role, TLS", $role, sub { my %with = @_; return (%who, %with, socket => tls_socket(($with{relay} // $node)->port)) });
	}
}
if ($have_tls)
{
	my $session = PgWeir::Session->new($node, user => 'by_scram', password => 'right', socket => tls_socket($node->port));
	is($session->value('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'), 't', 'and that was TLS');
	$session->close;
}

# ---- authentication that takes long

# authentication_timeout goes on meanwhile. What is left of it is less than weir.startup_timeout, and ours ends first.
{
	my %who = (user => 'by_scram', password => 'right', tcp => 1, async => 1);
	reconfigure($admin, 'authentication_timeout' => '3s');
	my $free = occupy_startup($node, $admin, $locker);
	my $log = -s $node->logfile;
	my $began = Time::HiRes::time();
	my $slow = app_of($node, %who);
	poll_until('the client takes its time', sub { Time::HiRes::time() - $began > 1.5 });    # it reads no question, and so answers none
	my $answer = $slow->answer;
	is_refused($answer, qr/Connections that start: 1/, 'a slow client');
	cmp_ok(Time::HiRes::time() - $began, '<', 3, 'and before authentication_timeout');
	unlike(slurp_file($node->logfile, $log), qr/canceling authentication due to timeout/, 'which did not come');
	reconfigure($admin, 'authentication_timeout' => '120s');
	$free->();
	no_startups_left($admin, 'slow authentication');
}

# ---- classes by address

{
	reconfigure($admin,
		'weir.max_startups' => 0,
		'weir.classes' => 'net: weight=1; here: startup_rate=1 startup_burst=1; other: weight=1',
		'weir.class_map' => 'address=127.1.0.0/16 => other; address=127.0.0.0/8 => net; address=local => here');
	my @in = map { app_of($node, user => 'by_trust', tcp => 1) } 1 .. 3;
	is(startup_value($admin, 'admitted', 'net'), 3, 'who comes from a network of weir.class_map has its class');
	is(startup_value($admin, 'admitted', 'other'), 0, 'and no other');
	push @in, app_of($node);
	my ($late) = queue_startups($node, $admin, 1);
	is(startup_value($admin, 'waiting', 'here'), 1, 'the rate of one class holds up who is of that class');
	push @in, app_of($node, user => 'by_trust', tcp => 1);
	is($late->answer->{code}, '', 'for a while');
	$_->close foreach @in, $late;
	reconfigure($admin, 'weir.classes' => '', 'weir.class_map' => '');
	no_startups_left($admin, 'classes by address');
}

# ---- a loop of wrong passwords

# Each of these sends the next guess when it has heard of the last. Returns the seconds it took.
sub guess
{
	my ($from, $guesses, $at_once) = @_;
	my ($began, $heard) = (Time::HiRes::time(), 0);
	my $new = sub {
		return app_of($node, user => 'by_md5', password => 'wrong', async => 1,
			socket => IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . $node->port, LocalAddr => $from) // die "connect: $!");
	};
	my @guessers = map { $new->() } 1 .. $at_once;
	poll_until(
		"$guesses wrong passwords",
		sub {
			foreach my $guesser (@guessers)
			{
				next unless $guesser->answered;
				is($guesser->answer->{code}, '28P01', "a wrong password from $from");
				$guesser = ++$heard + @guessers <= $guesses ? $new->() : $guesser;
			}
			return $heard >= $guesses;
		});
	return Time::HiRes::time() - $began;
}

# A test: who knows the password comes in at once.
sub comes_in
{
	my ($name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = app_of($node, async => 1, %options);
	my $answer = $session->answer($PgWeir::at_once_s);
	$session->close;
	return is($answer ? $answer->{code} : 'no answer', '', $name);
}

{
	my %knows = (user => 'by_md5', password => 'right', tcp => 1);
	$admin->query('SELECT weir.reset()');
	reconfigure($admin, 'weir.failed_login_rate' => 4);
	cmp_ok(guess('127.0.0.1', 12, 2), '>', 1.5, 'a second more for each four guesses from one address');
	my @held = map { app_of($node, user => 'by_md5', password => 'wrong', tcp => 1, async => 1) } 1 .. 3;
	poll_until('three are held', sub { $_->answered foreach @held; $admin->value(q{SELECT count(*) FROM weir.activity WHERE state = 'held'}) > 0 });
	comes_in('the right password from the same address, meanwhile', %knows);
	comes_in('another role from the same address', user => 'by_trust', tcp => 1);
	cmp_ok(guess('127.0.0.2', 1, 1), '<', $PgWeir::at_once_s, 'another address has a rate of its own');
	is(join(' ', map { $_->answer->{code} } @held), '28P01 28P01 28P01', 'all are answered');
	is(startup_value($admin, 'admitted', 'failed_login'), 16, 'they count as failed logins');
	is(startup_value($admin, 'admitted'), 2, 'and only the others as logins');
	cmp_ok(startup_value($admin, 'held', 'failed_login'), '>=', 8, 'held ones are counted');

	# As a class it may have a limit of its own. This one lets two through, and then one in a second.
	reconfigure($admin, 'weir.failed_login_rate' => 0, 'weir.classes' => 'failed_login: startup_rate=1 startup_burst=2');
	app_of($node, user => 'by_md5', password => 'wrong', tcp => 1, async => 1)->answer foreach 1 .. 2;
	my ($late) = queue_startups($node, $admin, 1, user => 'by_md5', password => 'wrong', tcp => 1);
	comes_in('the right password does not wait for the class failed_login', %knows);
	is($late->answer->{code}, '28P01', 'a wrong one does');
	reconfigure($admin, 'weir.classes' => '', 'weir.max_startups' => 1);
	no_startups_left($admin, 'wrong passwords in a loop');
}

# ---- absurd startup packets

# Sends bytes to the server as they are; returns the socket.
sub raw
{
	my ($bytes) = @_;
	my $socket = IO::Socket::UNIX->new($node->host . '/.s.PGSQL.' . $node->port) or die "connect: $!";
	local $SIG{PIPE} = 'IGNORE';
	syswrite $socket, $bytes;
	return $socket;
}

# What the server says to them, up to the first query or the end: the SQLSTATE of an error, or that it is ready or hangs up.
sub says
{
	my ($socket) = @_;
	my $answer = '';
	while (IO::Select->new($socket)->can_read($PgWeir::deadline_s))
	{
		sysread($socket, $answer, 65536, length $answer) or return 'hangs up';
		while ($answer =~ /^(.)(....)/s && length $answer > unpack('N', $2))
		{
			my ($type, $body) = ($1, substr($answer, 0, unpack('N', $2) + 1, ''));
			return 'ready' if $type eq 'Z';
			return $1 if $type eq 'E' && $body =~ /\0C(.{5})\0/;
		}
	}
	return 'silent';
}

sub packet
{
	my ($body, $length) = @_;
	return pack('NN', $length // length($body) + 8, 196608) . $body;
}

# A packet whose length, as it says itself, is this.
sub packet_of_length
{
	my ($length) = @_;
	my $head = "user\0app\0database\0postgres\0application_name\0";
	return packet($head . 'x' x ($length - 8 - length($head) - 2) . "\0\0");
}

is(says(raw(packet_of_length(10_004))), 'ready', 'a packet of the greatest length');
is(says(raw(packet_of_length(10_005))), 'hangs up', 'one byte more');
is(says(raw(packet("user\0\0\0"))), '28000', 'no name in user');
is(says(raw(packet("database\0postgres\0\0"))), '28000', 'no user');
is(says(raw(packet("user\0app"))), '08P01', 'no end');
is(says(raw(packet("user\0app\0database\0\0\0"))), '3D000', 'no name in database: the name of the user');
is(says(raw(packet("\0"))), '28000', 'nothing');
is(says(raw(packet('', $_))), 'hangs up', "a length of $_") foreach 0, 4, 7, 0x7fffffff, 0xffffffff;
is(says(raw(pack('NN', 8, 0xffffffff))), '0A000', 'a protocol that there is not');
raw(substr(packet_of_length(9_000), 0, $_)) foreach 0, 1, 4, 8, 100, 8_999;    # and hang up
is(says(raw(packet("user\0app\0database\0postgres\0options\0-c weir.mode=off\0\0"))), '55P02', 'a setting that is not theirs');
no_startups_left($admin, 'absurd packets');

# In the queue, where everybody can see them. Thirteen, so that there is a storm to be written down.
{
	reconfigure($admin, 'weir.log_min_startup_wait' => 0);
	my $log = -s $node->logfile;
	my $free = occupy_startup($node, $admin, $locker);
	my $odd = join '', map { chr } 1 .. 255;
	my @names = ($odd, "\xff" x 9_000, "\xc3" x 63, "\xe2\x82", '%s%n%s', "new\nline; DROP ROLE app", ' ', 'x' x 9_000);
	my $before = startups_waiting($admin);
	my @sockets = map { raw(packet("user\0app\0database\0postgres\0application_name\0$_\0\0")) } @names;
	push @sockets, map { raw(packet("user\0app\0database\0$_\0\0")) } @names[ 0 .. 4 ];
	poll_until('they wait', sub { startups_waiting($admin) == @sockets });
	is($admin->value(q{SELECT count(*) FROM weir.activity WHERE state LIKE 'wait%' AND (application || database) ~ '^[ -~]*$'
			AND length(application) < 64 AND length(database) < 64}), scalar @sockets, 'the names of who waits are ASCII, and short');
	is($admin->value(q{SELECT count(*) FROM weir.activity WHERE application = 'new?line; DROP ROLE app'}), 1, 'as they were, but for what is not');
	poll_until('a storm is seen', sub { $admin->value('SELECT count(*) FROM weir.storms') == 1 });
	$free->();
	is(join(' ', map { says($_) } @sockets), join(' ', ('ready') x 8, ('3D000') x 5), 'all are answered');
	undef @sockets;
	no_startups_left($admin, 'odd names');
	poll_until('the storm is over', sub { $admin->value('SELECT count(*) FROM weir.storms WHERE ended IS NOT NULL') == 1 });
	like($admin->value('SELECT applications FROM weir.storms'), qr/^[ -~]+$/, 'the record of the storm is ASCII, too');
	ok(slurp_file($node->logfile, $log) =~ /DETAIL:  user=app database=postgres host=local application_name=%s%n%s$/m, 'no name is a format');
	reconfigure($admin, 'weir.log_min_startup_wait' => -1);
}

# An error after the gate gives the slot back.
{
	my @answers = map { app_of($node, options => '-c nonsense=1', async => 1) } 1 .. 20;
	is(join(' ', map { $_->answer->{code} } @answers), join(' ', ('42704') x 20), 'a setting that there is not: an error');
	no_startups_left($admin, 'errors after the gate');
}
is($admin->value(q{SELECT count(*) FROM weir.stat_startup, weir.startup_limit}) > 0, 1, 'the views go on');
is(app_of($node)->value('SELECT 1'), 1, 'and so do ordinary people');
no_startups_left($admin, 'in the end');

# ---- every ordinary place taken: replication

{
	reconfigure($admin, 'weir.startup_timeout' => '60s');
	my $free = occupy_startup($node, $admin, $locker);
	$admin->query('SELECT weir.reset()');
	my @waiters;
	until (@waiters && $waiters[-1]->answered)
	{
		push @waiters, app_of($node, async => 1);
		poll_until('it waits or is refused', sub { $waiters[-1]->answered || startups_waiting($admin) == @waiters });
	}
	is_refused((pop @waiters)->answer, qr/nearly all of max_connections \(60\) is taken/, 'no place left');
	is($admin->value("SELECT concat_ws(' ', queued, refused) FROM weir.stat_startup WHERE class = 'default'"), @waiters . ' 1',
		'who is refused was not queued');
	foreach my $kind (1, 'database')
	{
		my $walsender = app_of($node, user => 'copyist', replication => $kind, async => 1);
		my $answer = $walsender->answer($PgWeir::at_once_s) // { code => 'none' };
		is($answer->{code}, '', "replication=$kind: a walsender comes in all the same");
		like($walsender->value('IDENTIFY_SYSTEM'), qr/^\d+$/, 'and works') if $answer->{code} eq '';
	}
	reconfigure($admin, 'weir.failed_login_rate' => 1);
	my $held = startup_value($admin, 'held', 'failed_login');
	my @wrong = map { app_of($node, user => 'by_md5', password => 'wrong', tcp => 1, async => 1) } 1 .. 3;
	is(join(' ', map { $_->answer->{code} } @wrong), '28P01 28P01 28P01', 'wrong passwords are answered');
	is(startup_value($admin, 'held', 'failed_login'), $held, 'and not held in the places that superusers may need');
	reconfigure($admin, 'weir.failed_login_rate' => 0);
	my $reserved = $admin->value('SHOW superuser_reserved_connections');
	my @supers = map { admin_of($node, async => 1) } 1 .. $reserved;
	is(join(' ', map { my $answer = $_->answer($PgWeir::at_once_s); $answer ? $answer->{status} : 'none' } @supers),
		join(' ', ('I') x $reserved), "$reserved superusers come in");
	$_->close foreach @supers;
	$free->();
	is(scalar(grep { $_->answer->{code} eq '' } @waiters), scalar @waiters, 'all who wait are served');
	$_->close foreach @waiters;
	no_startups_left($admin, 'every place taken');
}

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|WARNING:  (?!terminating)/, 'no complaint in the log');
done_testing();

# Something that speaks TLS with a server on this port, for us.
sub tls_socket
{
	my ($port) = @_;
	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	my $pid = fork // die "fork: $!";
	if (!$pid)
	{
		close $ours;
		open STDIN, '<&', $theirs;
		open STDOUT, '>&', $theirs;
		open STDERR, '>', '/dev/null';
		exec qw(openssl s_client -quiet -starttls postgres -connect), "127.0.0.1:$port" or POSIX::_exit(1);
	}
	push @children, $pid;
	return $ours;
}

END
{
	local $?;
	kill 'KILL', @children;
	waitpid $_, 0 foreach @children;
}

# A process between one client and the server: it can go as a client's machine does, whatever is spoken through it.
package Relay;

use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);

sub new
{
	my ($class, $node) = @_;
	my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "listen: $!";
	my $self = bless { port => $listener->sockport, pid => fork // die "fork: $!" }, $class;
	push @children, $self->{pid} if $self->{pid};
	return $self if $self->{pid};

	my $client = $listener->accept or POSIX::_exit(1);
	my $server = IO::Socket::INET->new('127.0.0.1:' . $node->port) or POSIX::_exit(1);
	local $SIG{USR1} = sub {
		setsockopt($server, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
		POSIX::_exit(0);
	};
	my $both = IO::Select->new($client, $server);
	for (;;)
	{
		foreach my $from ($both->can_read)
		{
			sysread($from, my $bytes, 65536) or POSIX::_exit(0);
			syswrite($from == $client ? $server : $client, $bytes);
		}
	}
}

sub port { return $_[0]{port} }

sub connect { return IO::Socket::INET->new("127.0.0.1:$_[0]{port}") // die "connect: $!" }

# close: as a process that ends. reset: as a machine that has forgotten the connection.
sub end
{
	my ($self, $how) = @_;
	kill { close => 'KILL', reset => 'USR1' }->{$how}, $self->{pid};
	return;
}
