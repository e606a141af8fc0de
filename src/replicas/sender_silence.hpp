#pragma once

// When silence of the server that sends us WAL means that we lag.
//
// An idle sender that writes a heartbeat is never silent for longer than its interval, so a longer silence
// is a connection or a server that is cut off, long before wal_receiver_timeout says so: from then on we do
// not know of anything newer than the last message. A sender without heartbeats (it has not loaded pg_weir,
// or heartbeats are off there) may be silent for half a minute and have nothing to say. They are told apart
// by how it speaks: beats are new WAL, several times in a row, each within the bound; and a long silence
// that ends without any new WAL was that of a sender without beats, until the next connection.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

struct SenderSilence {
    int64_t heard_us; // the last message, by our clock; 0: none since the start
    int64_t sent_us;  // by the sender's clock: tells messages apart
    int64_t connected_us;
    uint64_t end_lsn;
    int32_t receiver; // pid of the walreceiver; 0: none
    uint32_t beats;   // times in a row that new WAL came within the bound, on this connection
    bool heard;       // anything, on this connection
    bool beatless;

    // At each sample. `receiver` 0: not connected. `bound_us`: how long a beating sender is silent at most.
    void Note(int32_t receiver_pid, uint64_t end, int64_t sent, int64_t received, int64_t bound_us,
              int64_t now_us) noexcept;

    // Nothing is known of the sender: not connected, or so lately that it had no time to say anything.
    bool IsDeaf(int64_t bound_us, int64_t now_us) const noexcept;

    // How much of the lag is silence: 0 if there is none, or it means nothing.
    int64_t LagUs(int64_t bound_us, int64_t now_us) const noexcept;

    void Shift(int64_t step_us) noexcept; // our clock was set
};

static_assert(std::is_trivially_copyable_v<SenderSilence>);

} // namespace weir
