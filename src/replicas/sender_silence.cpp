#include "replicas/sender_silence.hpp"

#include <algorithm>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr uint32_t kBeatsHeard = 3;           // in a row: it beats
constexpr int64_t kSmoothLooks = 16;          // of the mean gap
constexpr int64_t kFreshUs = 100000;          // not under way for longer: it is of now
constexpr int64_t kLongestResumeUs = 5000000; // that only old ones come

} // namespace

void SenderSilence::Note(int32_t receiver_pid, uint64_t end, int64_t sent, int64_t received, int64_t bound_us,
                         int64_t now_us) noexcept
{
    if (receiver_pid != receiver) {
        receiver = receiver_pid;
        connected_us = now_us;
        beats = 0;
        heard = beatless = false;
        usual_us = now_silent_us = 0;
        gap_us = ages_us = resumed_us = transit_us = 0;
        looks = 0;
        usual_before_us = bound_us; // nothing is known of it yet
        window_us = now_us;
    }
    // A walreceiver that just began has put its own time into both.
    if (receiver == 0 || sent == received)
        return;
    if (sent == sent_us) {
        now_silent_us = now_us - heard_us;
        ages_us += now_silent_us;
        looks++;
        return;
    }
    const bool in_time = heard && received - heard_us <= bound_us;
    const bool news = end != end_lsn;
    if (heard && !in_time && beats >= kBeatsHeard && !beatless) {
        resumed_us = now_us;
        cut_us = received - heard_us;
    }
    if (heard && !in_time)
        beats = 0;
    if (heard && !in_time && !news)
        beatless = true;
    if (in_time && news && beats < kBeatsHeard)
        beats++;
    NoteUsual(in_time, bound_us, now_us);
    if (in_time)
        NoteGap();
    heard = true;
    heard_us = received;
    sent_us = sent;
    end_lsn = end;
    ages_us = now_silent_us = now_us - received;
    looks = 1;
}

// Samples come at any moment between two messages: in the mean they find the latest one half a gap old.
void SenderSilence::NoteGap() noexcept
{
    const int64_t gap = 2 * ages_us / looks;
    gap_us = gap_us == 0 ? gap : gap_us + (gap - gap_us) * looks / (looks + kSmoothLooks);
}

// Two windows, each long enough for several beats.
void SenderSilence::NoteUsual(bool ended_in_time, int64_t bound_us, int64_t now_us) noexcept
{
    if (ended_in_time && now_silent_us > usual_us)
        usual_us = now_silent_us;
    if (now_us - window_us < 2 * bound_us)
        return;
    usual_before_us = usual_us;
    usual_us = 0;
    window_us = now_us;
}

void SenderSilence::NoteTransit(int64_t under_way_us) noexcept
{
    if (under_way_us <= kFreshUs || heard_us - resumed_us > kLongestResumeUs)
        resumed_us = 0;
    transit_us = resumed_us == 0 ? 0 : std::min(under_way_us, cut_us);
}

bool SenderSilence::IsDeaf(int64_t bound_us, int64_t now_us) const noexcept
{
    return receiver == 0 || (!heard && now_us - connected_us <= bound_us);
}

int64_t SenderSilence::LagUs(const SilenceBounds &bounds, int64_t now_us) const noexcept
{
    const int64_t silence = std::max(now_us - heard_us, INT64_C(0));
    if (transit_us != 0)
        return silence + transit_us;
    if (heard_us == 0 || silence == 0)
        return 0;
    if (IsDeaf(bounds.bound_us, now_us))
        return silence;
    if (!heard || beats < kBeatsHeard || beatless || bounds.bound_us >= kNoBeats)
        return 0;
    const int64_t usual = std::min(std::max(usual_us, usual_before_us), bounds.bound_us);
    if (silence <= usual + bounds.slack_us)
        return 0;
    const bool late = silence > bounds.beat_us + bounds.late_us;
    const int64_t missing = silence - std::min(gap_us, usual);
    return late ? missing : std::min(missing, bounds.beat_us);
}

void SenderSilence::Shift(int64_t step_us) noexcept
{
    if (heard_us != 0)
        heard_us += step_us;
    if (resumed_us != 0)
        resumed_us += step_us;
    connected_us += step_us;
    window_us += step_us;
}

} // namespace weir
