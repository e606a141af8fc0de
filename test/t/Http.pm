package Http;

# A client of the HTTP endpoint, over bare sockets: it can be slow, rude and many.

use strict;
use warnings;

use Exporter 'import';
use IO::Select;
use IO::Socket::INET;
use IPC::Run ();
use PgWeir;
use Time::HiRes ();

our @EXPORT = qw(http_open http_answer http_get http_serves http_metrics promtool_run promtool_metrics);

sub http_open
{
	my ($port) = @_;
	return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 10);
}

# Sends this, and returns what comes until the server closes, as {status, head, body}; status 0: nothing came.
sub http_answer
{
	my ($port, $request) = @_;
	my $socket = http_open($port) or return { status => 0, head => '', body => "connect: $!" };
	local $SIG{PIPE} = 'IGNORE';
	syswrite($socket, $request);
	my $text = '';
	my $end = Time::HiRes::time() + $PgWeir::deadline_s;
	while (IO::Select->new($socket)->can_read($end - Time::HiRes::time()))
	{
		last unless sysread($socket, $text, 65536, length $text);
	}
	my ($head, $body) = split /\r\n\r\n/, $text, 2;
	return { status => $text =~ m{^HTTP/1\.[01] (\d+)} ? $1 : 0, head => $head // '', body => $body // '' };
}

sub http_get
{
	my ($port, $target) = @_;
	return http_answer($port, "GET $target HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
}

# Waits until something is answered there.
sub http_serves
{
	my ($port) = @_;
	return PgWeir::poll_until("port $port answers", sub { http_get($port, '/health')->{status} != 0 });
}

# The samples of /metrics: name with labels, and value.
sub http_metrics
{
	my ($port) = @_;
	return { http_get($port, '/metrics')->{body} =~ /^([^#\s]\S*) (\S+)$/mg };
}

# Prometheus's own tool, on files or with a text as its input. '': all is well; else what it said.
sub promtool_run
{
	my (@arguments) = @_;
	my $said = '';
	my $well = IPC::Run::run([ 'promtool', @arguments ], '<', \undef, '>&', \$said);
	return $well ? '' : "promtool @arguments: $said";
}

# `promtool check metrics` grumbles with success, too.
sub promtool_metrics
{
	my ($text) = @_;
	my $said = '';
	my $well = IPC::Run::run([ 'promtool', 'check', 'metrics' ], '<', \$text, '>&', \$said);
	return $well && $said eq '' ? '' : "promtool: $said";
}

1;
