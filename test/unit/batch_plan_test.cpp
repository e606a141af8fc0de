#include "coalesce/batch_plan.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace weir
{
namespace
{

class BatchPlanTest : public testing::Test
{
  protected:
    void Add(uint32_t relation, RequestKind kind, const std::string &key)
    {
        slots_.push_back(std::make_unique<RequestSlot>());
        RequestSlot &slot = *slots_.back();
        slot.relation = relation;
        slot.kind = kind;
        slot.key_offset = 8;
        slot.key_size = static_cast<uint32_t>(key.size());
        memcpy(slot.payload + slot.key_offset, key.data(), key.size());
        planned_.push_back({&slot, static_cast<uint32_t>(planned_.size())});
    }

    std::vector<uint32_t> Sorted()
    {
        SortBatch(planned_.data(), Count());
        std::vector<uint32_t> order;
        for (const PlannedRequest &request : planned_)
            order.push_back(request.order);
        return order;
    }

    uint32_t Count() const { return static_cast<uint32_t>(planned_.size()); }

    std::vector<std::unique_ptr<RequestSlot>> slots_;
    std::vector<PlannedRequest> planned_;
};

TEST_F(BatchPlanTest, TablesThenInsertsThenRowsThenArrival)
{
    Add(2, RequestKind::kUpdate, "b");
    Add(1, RequestKind::kUpdate, "b");
    Add(2, RequestKind::kUpdate, "a");
    Add(2, RequestKind::kDelete, "b");
    Add(2, RequestKind::kInsert, "");
    Add(1, RequestKind::kUpdate, "b");
    Add(2, RequestKind::kUpdate, "b");
    EXPECT_EQ((std::vector<uint32_t>{1, 5, 4, 2, 0, 3, 6}), Sorted());
    EXPECT_EQ(2u, RunEnd(planned_.data(), Count(), 0, true));
    EXPECT_EQ(2u, RunEnd(planned_.data(), Count(), 0, false));
    EXPECT_EQ(7u, RunEnd(planned_.data(), Count(), 2, false));
    EXPECT_EQ(4u, RunEnd(planned_.data(), Count(), 3, true)) << "one row";
    EXPECT_EQ(7u, RunEnd(planned_.data(), Count(), 4, true))
        << "update and delete of one row belong together";
}

TEST_F(BatchPlanTest, KeysAreTheSameByteForByte)
{
    Add(1, RequestKind::kUpdate, std::string("a\0b", 3));
    Add(1, RequestKind::kUpdate, std::string("a\0c", 3));
    Add(1, RequestKind::kUpdate, "a");
    EXPECT_FALSE(OfOneRow(*slots_[0], *slots_[1]));
    EXPECT_FALSE(OfOneRow(*slots_[0], *slots_[2]));
    EXPECT_TRUE(OfOneRow(*slots_[1], *slots_[1]));
}

TEST_F(BatchPlanTest, EveryRequestIsInExactlyOneRun)
{
    for (uint32_t i = 0; i < 1000; i++)
        Add(i % 3, i % 5 == 0 ? RequestKind::kInsert : RequestKind::kUpdate, std::to_string(i * i % 17));
    Sorted();
    uint32_t seen = 0;
    for (uint32_t from = 0, end; from < Count(); from = end) {
        end = RunEnd(planned_.data(), Count(), from, true);
        for (uint32_t i = from + 1; i < end; i++) {
            EXPECT_TRUE(OfOneRow(*planned_[from].slot, *planned_[i].slot));
            EXPECT_LT(planned_[i - 1].order, planned_[i].order);
        }
        seen += end - from;
    }
    EXPECT_EQ(Count(), seen);
}

} // namespace
} // namespace weir
