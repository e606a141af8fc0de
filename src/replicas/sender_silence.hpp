#pragma once

// When silence of the server that sends us WAL means that we lag.
//
// A sender that writes a heartbeat is never silent for longer than its interval, and one that is busy not
// even for that. So a silence that is longer than those of the last seconds is a connection or a server that
// is cut off, long before wal_receiver_timeout says so: what is longer than the mean gap between messages is
// the age of what should have come by then. Or the sender was busy and is idle now: until its next beat is
// late we cannot know, and say no more than a beat's interval. A load balancer that asks for no more does not
// turn readers away then.
//
// When a silence beyond the bound ends, what was under way in it comes first, and says where the sender was
// when it sent that: until a message comes that is new, the age of the latest is lag, too, but no more than
// the silence was long. Nor for longer than seconds in which only old ones come: then the sender's clock was
// set back.
//
// A sender without heartbeats (it has not loaded pg_weir, or heartbeats are off there) may be silent for half
// a minute and have nothing to say. They are told apart by how it speaks: beats are new WAL, several times in
// a row, each within the bound; and a long silence that ends without any new WAL was that of a sender without
// beats, until the next connection.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr int64_t kNoBeats = INT64_C(1) << 60; // a bound: silence never means anything

struct SilenceBounds {
    int64_t beat_us;  // from one heartbeat to the next
    int64_t late_us;  // so much later one may come, and mean nothing
    int64_t bound_us; // how long a beating sender is silent at most; kNoBeats
    int64_t slack_us; // silences are seen at samples, and so may be longer by that
};

struct SenderSilence {
    int64_t heard_us; // the last message, by our clock; 0: none since the start
    int64_t sent_us;  // by the sender's clock: tells messages apart
    int64_t connected_us;
    uint64_t end_lsn;
    int32_t receiver; // pid of the walreceiver; 0: none
    uint32_t beats;   // times in a row that new WAL came within the bound, on this connection
    bool heard;       // anything, on this connection
    bool beatless;
    int64_t usual_us;        // longest silence that ended in time, since window_us
    int64_t usual_before_us; // and in the window before
    int64_t window_us;
    int64_t now_silent_us; // the silence of now, as last seen
    int64_t gap_us;        // from one message to the next, smoothed; 0: not known
    int64_t ages_us;       // of the latest message, summed over the `looks` samples that saw it
    uint32_t looks;
    int64_t resumed_us; // when a cut ended; 0: what was under way in it has come
    int64_t cut_us;     // how long that was
    int64_t transit_us; // how long the latest message was under way, while that matters

    // At each sample. `receiver` 0: not connected. `bound_us`: how long a beating sender is silent at most.
    void Note(int32_t receiver_pid, uint64_t end, int64_t sent, int64_t received, int64_t bound_us,
              int64_t now_us) noexcept;

    // After Note(), of the latest message.
    void NoteTransit(int64_t under_way_us) noexcept;

    // Nothing is known of the sender: not connected, or so lately that it had no time to say anything.
    bool IsDeaf(int64_t bound_us, int64_t now_us) const noexcept;

    // How much of the lag is silence: 0 if there is none, or it means nothing.
    int64_t LagUs(const SilenceBounds &bounds, int64_t now_us) const noexcept;

    void Shift(int64_t step_us) noexcept; // our clock was set

  private:
    void NoteUsual(bool ended_in_time, int64_t bound_us, int64_t now_us) noexcept;
    void NoteGap() noexcept;
};

static_assert(std::is_trivially_copyable_v<SenderSilence>);

} // namespace weir
