#include "http/listener.hpp"

#include <cerrno>
#include <cstdio>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unistd.h>

#define BOOST_ASIO_DISABLE_THREADS
#define BOOST_ASIO_NO_DEPRECATED
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_static_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

namespace weir
{

namespace
{

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr size_t kMaxHeaderBytes = 16384;
constexpr auto kAcceptPause =
    std::chrono::milliseconds(100); // after a failure: no descriptors left, for instance
constexpr size_t kMostDrained = 1 << 20;

class Connection;

struct Server {
    // Outlives the connections, which the context's operations keep.
    std::list<Connection *> connections; // that of the longest present request first
    HttpLimits limits;
    HttpResponder responder = nullptr;
    HttpCounters *counters = nullptr;
    uint16_t port = 0; // that was asked for, or given if that was 0

    asio::io_context context{1};
    tcp::acceptor acceptor{context};
    asio::steady_timer pause{context};
    asio::posix::stream_descriptor wakes{context};   // the pipe's reading end
    asio::posix::stream_descriptor watched{context}; // the caller's, duplicated
};

Server *server = nullptr;
int wake_pipe[2] = {-1, -1}; // of the process: a signal handler may write at any time

// From its acceptance to its end. It keeps itself alive: every operation in flight holds a reference, and so
// there is always exactly one.
class Connection : public std::enable_shared_from_this<Connection>
{
  public:
    explicit Connection(tcp::socket &&socket) : stream_(std::move(socket))
    {
        place_ = server->connections.insert(server->connections.end(), this);
        server->counters->open.fetch_add(1, std::memory_order_relaxed);
    }

    ~Connection() { Leave(); }

    Connection(const Connection &) = delete;
    Connection &operator=(const Connection &) = delete;

    // The operation in flight ends, and with it the connection. Its place is free at once.
    void Abandon()
    {
        Leave();
        stream_.close();
    }

    void Read()
    {
        if (!listed_)
            return;
        server->connections.splice(server->connections.end(), server->connections, place_);
        parser_.emplace();
        parser_->header_limit(server->limits.header_bytes);
        stream_.expires_after(std::chrono::milliseconds(server->limits.deadline_ms));
        http::async_read(stream_, buffer_, *parser_,
                         [self = shared_from_this()](error_code error, size_t) { self->OnRead(error); });
    }

  private:
    void Leave()
    {
        if (!listed_)
            return;
        listed_ = false;
        server->connections.erase(place_);
        server->counters->open.fetch_sub(1, std::memory_order_relaxed);
    }

    // Kept open after an answer: no other request was promised, and none has begun.
    bool IsIdle() const { return response_.has_value() && buffer_.size() == 0 && !parser_->got_some(); }

    void OnRead(error_code error)
    {
        if (!error) {
            Answer();
            return;
        }
        if (error == beast::error::timeout && !IsIdle())
            server->counters->late.fetch_add(1, std::memory_order_relaxed);
        // What is not HTTP's is the connection's: nobody is there to answer.
        if (error.category() != http::make_error_code(http::error::bad_value).category() ||
            error == http::error::end_of_stream || error == http::error::partial_message)
            return;
        keep_alive_ = false;
        if (error == http::error::header_limit || error == http::error::buffer_overflow)
            Write(http::status::request_header_fields_too_large, "the request's header is too large\n");
        else if (error == http::error::unexpected_body || error == http::error::body_limit)
            Write(http::status::payload_too_large, "a request has no body here\n");
        else
            Write(http::status::bad_request, "this is not a request of HTTP/1.0 or 1.1\n");
    }

    void Answer()
    {
        const auto &request = parser_->get();
        keep_alive_ = request.keep_alive();
        version_ = request.version();
        head_only_ = request.method() == http::verb::head;
        if (!head_only_ && request.method() != http::verb::get && request.method() != http::verb::options) {
            Write(http::status::method_not_allowed, "there is GET, HEAD and OPTIONS\n");
            return;
        }
        HttpAnswer answer = {500, "text/plain", "", 0};
        server->responder(request.target().data(), request.target().size(), &answer);
        Write(static_cast<http::status>(answer.status), std::string(answer.body, answer.length),
              answer.content_type);
    }

    void Write(http::status status, std::string body, const char *content_type = "text/plain")
    {
        response_.emplace(status, version_);
        response_->set(http::field::server, "pg_weir");
        response_->set(http::field::content_type, content_type);
        response_->set(http::field::cache_control, "no-store");
        if (status == http::status::method_not_allowed)
            response_->set(http::field::allow, "GET, HEAD, OPTIONS");
        response_->keep_alive(keep_alive_);
        response_->body() = std::move(body);
        response_->prepare_payload(); // its length, also where the body is not sent
        const unsigned class_of_status = static_cast<unsigned>(status) / 100;
        server->counters->answers[class_of_status < 6 ? class_of_status : 0].fetch_add(
            1, std::memory_order_relaxed);

        serializer_.emplace(*response_);
        stream_.expires_after(std::chrono::milliseconds(server->limits.deadline_ms));
        auto done = [self = shared_from_this()](error_code error, size_t) { self->OnWritten(error); };
        if (head_only_)
            http::async_write_header(stream_, *serializer_, done);
        else
            http::async_write(stream_, *serializer_, done);
    }

    void OnWritten(error_code error)
    {
        if (error == beast::error::timeout)
            server->counters->late.fetch_add(1, std::memory_order_relaxed);
        if (error)
            return;
        if (keep_alive_) {
            Read();
            return;
        }
        // A socket that is closed with unread bytes resets the connection, and the client may not see the
        // answer: read on until it has closed its side, within the deadline.
        stream_.socket().shutdown(tcp::socket::shutdown_send, error);
        Drain();
    }

    void Drain()
    {
        buffer_.clear();
        stream_.async_read_some(buffer_.prepare(buffer_.max_size()),
                                [self = shared_from_this()](error_code error, size_t bytes) {
                                    self->drained_ += bytes;
                                    if (!error && self->drained_ < kMostDrained)
                                        self->Drain();
                                });
    }

    beast::tcp_stream stream_;
    beast::flat_static_buffer<kMaxHeaderBytes> buffer_;
    std::optional<http::request_parser<http::empty_body>> parser_;
    std::optional<http::response<http::string_body>> response_;
    std::optional<http::response_serializer<http::string_body>> serializer_;
    std::list<Connection *>::iterator place_;
    bool listed_ = true;
    unsigned version_ = 11;
    bool keep_alive_ = true;
    bool head_only_ = false;
    size_t drained_ = 0;
};

void Accept();

void OnAccept(error_code error, tcp::socket socket)
{
    if (error == asio::error::operation_aborted)
        return;
    if (error) {
        server->pause.expires_after(kAcceptPause);
        server->pause.async_wait([](error_code aborted) {
            if (!aborted)
                Accept();
        });
        return;
    }
    // First of all, so that nothing that is thrown below ends the accepting.
    Accept();
    server->counters->connections.fetch_add(1, std::memory_order_relaxed);
    if (server->connections.size() >= server->limits.connections) {
        server->counters->evicted.fetch_add(1, std::memory_order_relaxed);
        server->connections.front()->Abandon();
    }
    std::make_shared<Connection>(std::move(socket))->Read();
}

void Accept()
{
    server->acceptor.async_accept(OnAccept);
}

void AwaitWake()
{
    server->wakes.async_wait(asio::posix::stream_descriptor::wait_read, [](error_code error) {
        if (error)
            return;
        char bytes[64];
        while (read(wake_pipe[0], bytes, sizeof(bytes)) > 0)
            ;
        server->context.stop();
        AwaitWake();
    });
}

void AwaitWatched()
{
    server->watched.async_wait(asio::posix::stream_descriptor::wait_read, [](error_code error) {
        if (!error)
            server->context.stop();
    });
}

// Runs what may throw. False: it did, or returned an error.
template <typename Function> bool Guarded(char (&error)[kHttpErrorSize], Function function) noexcept
{
    try {
        const error_code code = function();
        if (!code)
            return true;
        snprintf(error, sizeof(error), "%s", code.message().c_str());
    } catch (const std::exception &e) {
        snprintf(error, sizeof(error), "%s", e.what());
    } catch (...) {
        snprintf(error, sizeof(error), "unknown exception");
    }
    return false;
}

error_code OpenAcceptor(const char *address, uint16_t port)
{
    error_code error;
    const auto ip = asio::ip::make_address(address, error);
    const tcp::endpoint endpoint(ip, port);
    tcp::acceptor &acceptor = server->acceptor;
    if (!error)
        acceptor.open(endpoint.protocol(), error);
    if (!error)
        acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error)
        acceptor.bind(endpoint, error);
    if (!error)
        acceptor.listen(asio::socket_base::max_listen_connections, error);
    return error;
}

error_code OpenPipe()
{
    error_code error;
    if (wake_pipe[0] < 0 && pipe2(wake_pipe, O_NONBLOCK | O_CLOEXEC) != 0)
        return {errno, boost::system::system_category()};
    server->wakes.assign(dup(wake_pipe[0]), error);
    return error;
}

} // namespace

bool HttpListen(const char *address, uint16_t port, const HttpLimits &limits, HttpResponder responder,
                HttpCounters *counters, char (&error)[kHttpErrorSize]) noexcept
{
    HttpClose();
    const bool listens = Guarded(error, [&]() -> error_code {
        server = std::make_unique<Server>().release();
        server->limits = limits;
        server->responder = responder;
        server->counters = counters;
        error_code code = OpenAcceptor(address, port);
        if (!code)
            code = OpenPipe();
        if (code)
            return code;
        server->port = server->acceptor.local_endpoint().port();
        AwaitWake();
        Accept();
        return {};
    });
    if (!listens)
        HttpClose();
    return listens;
}

bool HttpServe(int timeout_ms, char (&error)[kHttpErrorSize]) noexcept
{
    return Guarded(error, [timeout_ms]() -> error_code {
        server->context.restart();
        server->context.run_for(std::chrono::milliseconds(timeout_ms));
        return {};
    });
}

void HttpWake() noexcept
{
    const int saved_errno = errno;
    // A pipe that is full wakes, too.
    [[maybe_unused]] const ssize_t written = write(wake_pipe[1], "", 1);
    errno = saved_errno;
}

bool HttpWakeOn(int descriptor, char (&error)[kHttpErrorSize]) noexcept
{
    return Guarded(error, [descriptor] {
        error_code code;
        server->watched.assign(dup(descriptor), code);
        if (!code)
            AwaitWatched();
        return code;
    });
}

void HttpClose() noexcept
{
    char error[kHttpErrorSize];
    // The operations in flight go first, with their connections, which still ask for the server.
    Guarded(error, []() -> error_code {
        if (server != nullptr) {
            error_code ignored;
            server->acceptor.close(ignored);
            while (!server->connections.empty())
                server->connections.front()->Abandon();
            server->wakes.close(ignored);
            server->watched.close(ignored);
            server->pause.cancel();
            server->context.restart();
            server->context.run();
        }
        return {};
    });
    delete server;
    server = nullptr;
}

uint16_t HttpPort() noexcept
{
    return server != nullptr ? server->port : 0;
}

bool IsHttpAddress(const char *address) noexcept
{
    char error[kHttpErrorSize];
    return Guarded(error, [address]() -> error_code {
        error_code code;
        asio::ip::make_address(address, code);
        return code;
    });
}

} // namespace weir
